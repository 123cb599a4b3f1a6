"""Runs as processes: started, supervised, or several in one."""
