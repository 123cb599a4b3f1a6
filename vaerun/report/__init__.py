"""Run directories to tables; reads files only (layer L6)."""
