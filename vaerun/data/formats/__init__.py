"""Readers of files as other projects distribute them, one format per module.

The files may be damaged or untrusted: a reader takes only regular files, knows only the values that images and labels
need, and compares what a file declares with its size before it allocates memory.
"""
