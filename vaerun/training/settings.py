"""Training settings as plain values, the resulting plan of steps, and the learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vaerun.errors import InputError


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the trainer.

    Attributes:
        seed: seed of permutations and noise.
        epochs: passes through the training split.
        max_steps: maximum number of steps; None: no limit.
        batch_size: images per step; the last batch of an epoch may be smaller.
        learning_rate: learning rate of Adam.
        variance_learning_rate: learning rate for log s2; None: learning_rate.
        discriminator_learning_rate: learning rate for the discriminator; None: learning_rate.
        betas: betas of Adam.
        discriminator_betas: betas for the discriminator; None: betas.
        schedule: learning-rate schedule, see lr_multiplier.
        clip_norm: maximum gradient norm of a phase; None: no clipping.
        early_stopping: stop after this many validations without improvement; None: never.
        log_every: steps between logged training metrics.
        validate_every: epochs between validations.
        checkpoint_seconds: minimum time between checkpoints.
        precision: see training/precision.py.
        compile: "graph": capture the step as a CUDA graph; "none": run it eagerly; "auto": graph on a GPU if the step
            can be captured.
    """

    seed: int
    epochs: int
    batch_size: int
    learning_rate: float
    max_steps: int | None = None
    variance_learning_rate: float | None = None
    discriminator_learning_rate: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    discriminator_betas: tuple[float, float] | None = None
    schedule: str = "constant"
    clip_norm: float | None = None
    early_stopping: int | None = None
    log_every: int = 50
    validate_every: int = 1
    checkpoint_seconds: float = 60.0
    precision: str = "float32"
    compile: str = "none"

    def plan(self, images: int) -> TrainPlan:
        """The steps of a run on `images` training images. Raises InputError for a batch larger than the split."""
        if self.batch_size > images:
            raise InputError(
                f"trainer.batch_size={self.batch_size} is larger than the training split ({images} images): "
                f"set it to at most {images}"
            )
        steps = self.epochs * math.ceil(images / self.batch_size)
        return TrainPlan(images, self.batch_size, steps if self.max_steps is None else min(steps, self.max_steps))


@dataclass(frozen=True)
class TrainPlan:
    """Steps, epochs and batch sizes of a run.

    Attributes:
        images: number of training images.
        batch_size: images per step; the last batch of an epoch may be smaller.
        total_steps: number of steps of the run; 0 for a model that is fitted in closed form.
    """

    images: int
    batch_size: int
    total_steps: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in a pass through the training split."""
        return math.ceil(self.images / self.batch_size)

    @property
    def images_per_step(self) -> float:
        """Mean number of images per step over an epoch."""
        return self.images / self.steps_per_epoch

    @property
    def batch_sizes(self) -> list[int]:
        """Distinct batch sizes of an epoch, in ascending order."""
        return sorted({min(self.batch_size, self.images), self.images % self.batch_size or self.batch_size})


def lr_multiplier(schedule: str, epoch: int, progress: float) -> float:
    """The factor on the learning rate under a schedule.

    constant: 1. cosine: from 1 to 0 over the run. step: 1, then 0.1 after half and 0.01 after three quarters of the
    run. burda: 10^(-i/7) for 3^i epochs, i = 0..7 (Burda et al. 2016, section 5; 3280 epochs in all).

    Arguments:
        schedule: name of the schedule.
        epoch: current epoch, from 0.
        progress: fraction of the run's steps done, in [0, 1].

    Raises ValueError for an unknown schedule.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "step":
        return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01
    if schedule == "burda":
        i, end = 0, 1
        while epoch >= end and i < 7:
            i += 1
            end += 3**i
        return 10 ** (-i / 7)
    raise ValueError(f"unknown schedule {schedule!r}")
