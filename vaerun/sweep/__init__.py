"""Sweeps: many jobs, checked before any starts, run in parallel, resumed and summarised."""
