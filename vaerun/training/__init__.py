"""The training loop, its steps and their settings; depends only on objectives and batches."""

from vaerun.training.settings import TrainPlan, TrainSettings
from vaerun.training.step import make_optimisers
from vaerun.training.train_state import TrainState, restore
from vaerun.training.trainer import Hooks, Trainer

__all__ = ["Hooks", "TrainPlan", "TrainSettings", "TrainState", "Trainer", "make_optimisers", "restore"]
