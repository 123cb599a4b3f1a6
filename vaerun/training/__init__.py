"""The training loop, checkpoints, logs and signals; they know objectives and batches only (layer L5)."""

from vaerun.training.loop import restore, train
from vaerun.training.progress import Progress
from vaerun.training.settings import TrainSettings
from vaerun.training.update import make_optimisers

__all__ = ["Progress", "TrainSettings", "make_optimisers", "restore", "train"]
