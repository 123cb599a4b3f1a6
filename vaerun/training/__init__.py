"""The training loop, checkpoints, logs and signals; they know objectives and batches only (layer L5)."""

from vaerun.training.loop import TrainSettings, make_optimisers, restore, train
from vaerun.training.progress import Progress

__all__ = ["Progress", "TrainSettings", "make_optimisers", "restore", "train"]
