"""Reading and writing files: atomic writes, checkpoints, run directories, and untrusted input."""
