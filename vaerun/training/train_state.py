"""Training progress, its restoration from a checkpoint, and the clock that measures training speed."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from vaerun.errors import InputError
from vaerun.objectives import Objective
from vaerun.storage.safe_pickle import number_type

WARMUP_STEPS = 10  # excluded from the measured speed, for allocation and other first-call costs
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # state of Adam


@dataclass
class TrainState:
    """Progress of training; part of every checkpoint.

    Attributes:
        step: number of steps done.
        best, best_epoch: best validation metric so far (such as the ELBO, nats per image), and its epoch.
        stale: validations without improvement.
        validation_due: whether the validation after this step is still to be done.
        finished: whether training is complete.
        seconds: training time without validation and checkpoints.
        timed_seconds, timed_steps: the same without the warm-up steps of each process, and the number of these steps.
    """

    step: int = 0
    best: float | None = None
    best_epoch: float = 0.0
    stale: int = 0
    validation_due: bool = False
    finished: bool = False
    seconds: float = 0.0
    timed_seconds: float = 0.0
    timed_steps: int = 0

    def timing(self, images_per_step: float) -> dict[str, float | None]:
        """Training time in seconds, and the speed excluding the warm-up steps of each process."""
        speed = self.timed_steps / self.timed_seconds if self.timed_seconds else None
        return {
            "train_seconds": round(self.seconds, 3),
            "train_steps": self.step,
            "steps_per_second": speed,
            "images_per_second": speed * images_per_step if speed else None,
        }

    @classmethod
    def from_checkpoint(cls, values: dict[str, Any]) -> TrainState:
        """Create the state from a checkpoint's values. Raises ValueError or TypeError for invalid ones."""
        if "step" not in values:
            raise ValueError("progress.step is not a count")
        for name in ("step", "stale", "timed_steps"):
            check_count(f"progress.{name}", values.get(name, 0))
        for name in ("best_epoch", "seconds", "timed_seconds"):
            value = values.get(name, 0.0)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"progress.{name} is not a finite number of at least 0")
        if not isinstance(values.get("best"), int | float | None):
            raise ValueError("progress.best is not a number")
        return cls(**values)


def check_count(name: str, value: Any) -> int:
    """Return the value. Raises ValueError unless it is a non-negative int."""
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is not a count")
    return value


def restore(
    objective: Objective, optimisers: dict[str, Optimizer], checkpoint: dict[str, Any], device: torch.device
) -> tuple[TrainState, dict[str, Tensor], int]:
    """Load a checkpoint into objective and optimisers; return the state, the sums of metrics and the images they cover.

    Raises InputError if the checkpoint does not fit this model.
    """
    try:
        for name, value in objective.state_dict().items():
            if name in checkpoint["objective"] and number_type(checkpoint["objective"][name]) != number_type(value):
                raise ValueError(f"{name} has another kind of dtype than the model's")
        objective.load_state_dict(checkpoint["objective"])
        for name, optimiser in optimisers.items():
            _restore_optimiser(name, optimiser, checkpoint["optimisers"][name])
        sums = {k: v.to(device) for k, v in checkpoint["metrics"]["sums"].items()}
        images = check_count("metrics.count", checkpoint["metrics"]["count"])
        return TrainState.from_checkpoint(checkpoint["progress"]), sums, images
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the checkpoint does not fit this run's model: {reason}") from error


def _restore_optimiser(name: str, optimiser: Optimizer, saved: dict[str, Any]) -> None:
    values = [moments.get(key) for moments in saved["state"].values() for key in MOMENTS]
    if not all(isinstance(value, Tensor) for value in values):
        raise ValueError(f"the optimiser's moments of phase {name} are incomplete")
    if not all(value.is_floating_point() for value in values):
        raise ValueError(f"the optimiser's moments of phase {name} are not floating point")
    options = [{k: group[k] for k in ("lr", "base_lr", "betas", "capturable")} for group in optimiser.param_groups]
    optimiser.load_state_dict(saved)
    for group, current in zip(optimiser.param_groups, options, strict=True):
        group |= current  # keep this run's settings: the checkpoint may be another run's
    for parameter, moments in optimiser.state.items():
        if any(v.dim() and v.shape != parameter.shape for v in moments.values() if isinstance(v, Tensor)):
            raise ValueError(f"the optimiser's moments of phase {name} do not have the shapes of the parameters")


class Clock:
    """Measures training time, in total and without the warm-up steps of this process."""

    def __init__(self, device: torch.device, first_step: int) -> None:
        self.device, self.warm_step = device, first_step + WARMUP_STEPS
        self.since: float | None = None
        self.warm_since: tuple[float, int] | None = None

    def begin(self, state: TrainState) -> None:
        """Start or resume the clock; called before each step."""
        now = time.perf_counter()
        if self.since is None:
            self.since = now
        if self.warm_since is None and state.step >= self.warm_step:
            self.warm_since = now, state.step

    def pause(self, state: TrainState) -> None:
        """Stop the clock and add the time since `begin` to the state."""
        if self.since is None:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        state.seconds += now - self.since
        if self.warm_since is not None:
            state.timed_seconds += now - self.warm_since[0]
            state.timed_steps += state.step - self.warm_since[1]
        self.since = self.warm_since = None
