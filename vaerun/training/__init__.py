"""The training loop, checkpoints, logs and signals; they know objectives and batches only (layer L5)."""

from vaerun.training.loop import Progress, TrainSettings, train

__all__ = ["Progress", "TrainSettings", "train"]
