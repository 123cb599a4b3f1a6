"""Logging and progress of a run: metrics.jsonl, TensorBoard, progress bars."""
