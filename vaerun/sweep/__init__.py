"""Sweeps: planned and checked whole, run beside each other, gone on with, and told of at the end."""
