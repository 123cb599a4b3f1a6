"""Reading and writing files: atomic writes, checkpoints, run directories, and input that cannot be trusted."""
