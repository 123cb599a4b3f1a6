"""Data-parallel training of one run in several processes."""
