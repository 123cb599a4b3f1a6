"""Adam with a learning rate and a step count per image, whereas torch's has one of each per tensor."""

from __future__ import annotations

import torch
from torch import Tensor


class PerImageAdam:
    """Gradient ascent by Adam (Kingma & Ba 2015, algorithm 1) with a learning rate and a step count per image.

    Arguments:
        leaves: parameters [B, ...], updated in place.
        rate: learning rates [B].
    """

    DECAYS = (0.9, 0.999)
    EPSILON = 1e-8

    def __init__(self, leaves: list[Tensor], rate: Tensor) -> None:
        self.leaves, self.rate, self.count = leaves, rate, torch.zeros_like(rate)
        self.first, self.second = ([torch.zeros_like(leaf) for leaf in leaves] for _ in range(2))

    def step(self, gradients: tuple[Tensor, ...]) -> None:
        """Update the leaves along their gradients."""
        self.count += 1
        a, b = self.DECAYS
        for leaf, gradient, first, second in zip(self.leaves, gradients, self.first, self.second, strict=True):
            rate, count = (value.view(-1, *[1] * (leaf.dim() - 1)) for value in (self.rate, self.count))
            first.lerp_(gradient, 1 - a)
            second.lerp_(gradient.square(), 1 - b)
            leaf += rate * (first / (1 - a**count)) / ((second / (1 - b**count)).sqrt() + self.EPSILON)

    def restart(self, rows: Tensor, values: list[Tensor]) -> None:
        """Set these rows (a mask [B]) to `values`, with a tenth of the learning rate and new moments."""
        self.rate[rows] /= 10
        self.count[rows] = 0
        for leaf, value, *moments in zip(self.leaves, values, self.first, self.second, strict=True):
            leaf[rows] = value
            for moment in moments:
                moment[rows] = 0

    def select(self, rows: Tensor, leaves: list[Tensor]) -> None:
        """Keep only these rows (a mask [B]); `leaves` are the smaller tensors that replace the parameters."""
        for new, old in zip(leaves, self.leaves, strict=True):
            new.copy_(old[rows])
        self.leaves, self.rate, self.count = leaves, self.rate[rows], self.count[rows]
        self.first, self.second = [m[rows] for m in self.first], [m[rows] for m in self.second]
