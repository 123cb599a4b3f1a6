"""The training loop, checkpoints, logs and signals; they know objectives and batches only (layer L5)."""

from vaerun.training.optimisers import make_optimisers
from vaerun.training.settings import TrainSettings
from vaerun.training.train_state import TrainState
from vaerun.training.trainer import restore, train

__all__ = ["TrainSettings", "TrainState", "make_optimisers", "restore", "train"]
