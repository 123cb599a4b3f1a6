"""Where a run stands, and how fast it is."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch

WARM_UP = 10  # steps left out of the measured speed: allocation and first-call costs


@dataclass
class TrainState:
    """Where a run stands; part of every checkpoint.

    Attributes:
        step: steps done.
        best: best validation metric so far (ELBO, nats per image) and, in best_epoch, after how many epochs.
        stale: validations since then.
        validation_due: the validation that follows this step has not been made yet.
        finished: nothing is left to train.
        seconds: training time, validation and checkpoints left out.
        timed_seconds, timed_steps: the same without the first steps of each process, and the steps it covers.
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

    @classmethod
    def of(cls, values: dict[str, Any]) -> TrainState:
        """That of a checkpoint. Raises ValueError or TypeError for what cannot be counted on from, or recorded."""
        if "step" not in values:
            raise ValueError("its progress has no count as step")
        for name in ("step", "stale", "timed_steps"):
            counted(name, values.get(name, 0))
        for name in ("best_epoch", "seconds", "timed_seconds"):
            value = values.get(name, 0.0)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"its progress has no plain number of 0 or more as {name}")
        if not isinstance(values.get("best"), int | float | None):
            raise ValueError("its progress has no plain number as best")
        return cls(**values)


def counted(name: str, value: Any) -> int:
    """A count. Raises ValueError for what is none."""
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"its progress has no count as {name}")
    return value


class Clock:
    """Training time: all of it, and that after the first steps of a process."""

    def __init__(self, device: torch.device, first_step: int) -> None:
        self.device, self.warm_step = device, first_step + WARM_UP
        self.since: float | None = None
        self.warm_since: tuple[float, int] | None = None

    def begin(self, progress: TrainState) -> None:
        """A step begins."""
        now = time.perf_counter()
        if self.since is None:
            self.since = now
        if self.warm_since is None and progress.step >= self.warm_step:
            self.warm_since = now, progress.step

    def pause(self, progress: TrainState) -> None:
        """Add what has passed."""
        if self.since is None:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        progress.seconds += now - self.since
        if self.warm_since is not None:
            progress.timed_seconds += now - self.warm_since[0]
            progress.timed_steps += progress.step - self.warm_since[1]
        self.since = self.warm_since = None
