"""Launches runs: one worker process per job, several ranks per run, or several runs in one process."""
