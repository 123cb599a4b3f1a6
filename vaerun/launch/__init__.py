"""Runs as processes: a worker per job, several ranks per run, or several runs in one process."""
