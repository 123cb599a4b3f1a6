"""How to train, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from vaerun.errors import InputError

COMPILE = ("auto", "none", "graph")
"""graph: record the step as a CUDA graph; none: make each; auto: graph on a GPU, where the step can be recorded."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        seed: of permutations and noise.
        epochs: passes through the training split.
        max_steps: stop after so many steps if that is sooner; None: no such limit.
        batch_size: images per step; the last batch of an epoch may be smaller.
        learning_rate: Adam's, for the networks.
        variance_learning_rate: Adam's, for log s2; None: the same.
        discriminator_learning_rate: Adam's, for a discriminator; None: the same.
        betas: Adam's.
        discriminator_betas: Adam's, for a discriminator; None: the same.
        schedule: see training/schedule.py.
        clip_norm: largest norm of a phase's whole gradient; None: no clipping.
        early_stopping: validations without improvement after which training ends; None: never.
        log_every: steps between records of training metrics.
        validate_every: epochs between validations.
        checkpoint_seconds: least time between checkpoints.
        precision: see training/precision.py.
        compile: see COMPILE.
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

    def total_steps(self, images: int) -> int:
        """Steps of the whole run on so many training images. Raises InputError for a batch larger than the data."""
        if self.batch_size > images:
            raise InputError(
                f"trainer.batch_size={self.batch_size} is larger than the training split ({images} images): "
                f"set it to at most {images}"
            )
        steps = self.epochs * -(-images // self.batch_size)
        return steps if self.max_steps is None else min(steps, self.max_steps)
