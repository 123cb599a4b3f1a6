"""Where a run stands, and how fast it is."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

WARM_UP = 10  # steps left out of the measured speed: allocation and first-call costs


@dataclass
class Progress:
    """Where a run stands; part of every checkpoint.

    Attributes:
        step: steps done.
        best: best validation ELBO so far (nats per image) and, in best_epoch, after how many epochs.
        stale: validations since then.
        validation_due: the validation that follows this step has not been made yet.
        finished: nothing is left to train.
        seconds, timed_steps: training time without warm-up, validation and checkpoints, and the steps it covers.
    """

    step: int = 0
    best: float | None = None
    best_epoch: float = 0.0
    stale: int = 0
    validation_due: bool = False
    finished: bool = False
    seconds: float = 0.0
    timed_steps: int = 0


class Clock:
    """Training time without the first steps of a process, validation and checkpoints."""

    def __init__(self, device: torch.device, first_step: int) -> None:
        self.device, self.first_step = device, first_step
        self.since: float | None = None
        self.since_step = 0

    def begin(self, progress: Progress) -> None:
        """Go on measuring, once the warm-up is over."""
        if self.since is None and progress.step >= self.first_step + WARM_UP:
            self.since, self.since_step = time.perf_counter(), progress.step

    def pause(self, progress: Progress) -> None:
        """Add what has passed."""
        if self.since is not None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            progress.seconds += time.perf_counter() - self.since
            progress.timed_steps += progress.step - self.since_step
            self.since = None
