"""What a model must know about images to be built: a data set provides it, and so does the record of a run."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ImageSpec:
    """The images that a model is built for.

    Attributes:
        name: of the data set.
        shape: (C, H, W).
        classes: number of classes; 0: no labels.
        binary: whether every x is 0 or 1, as a Bernoulli likelihood requires.
        logit: whether x is logit-transformed, and so not in [0, 1].
        mean: of x over the training split, [C, H, W], on the device of the model.
        variance: of x about the mean, averaged over pixels.
    """

    name: str
    shape: tuple[int, ...]
    classes: int
    binary: bool
    logit: bool
    mean: Tensor
    variance: float
