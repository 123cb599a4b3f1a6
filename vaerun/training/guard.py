"""The rule that a loss which is not finite never reaches the parameters."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from vaerun.errors import RunError
from vaerun.training.ranks import Ranks


class FiniteGuard:
    """Sees every loss and gradient norm; on a GPU the host learns of a bad one at the next `check`, else at once.

    What it is told of as bad is so for all processes of the run, at the same step.
    """

    CAUSES: ClassVar = {
        "kl": "the posterior's variance or mean diverged: lower trainer.learning_rate or set trainer.clip_norm=100",
        "reconstruction": "the decoder's output or the likelihood's variance diverged: lower trainer.learning_rate or "
        "trainer.variance_learning_rate, or set trainer.clip_norm=100",
        "discriminator_loss": "the discriminator diverged: lower trainer.discriminator_learning_rate, or set "
        "model.discriminator.spectral_norm=true or estimator.r1=1",
        "generator_loss": "generator or discriminator diverged: lower trainer.learning_rate and "
        "trainer.discriminator_learning_rate, or set trainer.clip_norm=100",
        "gradient": "exploding gradients: lower trainer.learning_rate or set trainer.clip_norm=100",
    }

    def __init__(self, device: torch.device, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        self.on_device = device.type == "cuda"
        self.first = torch.full((), -1, dtype=torch.int64, device=device) if self.on_device else None
        self.terms: dict[str, Tensor] = {}

    def see(self, bad: Tensor, step: int | Tensor, metrics: dict[str, Tensor], norm: Tensor) -> None:
        """Raises RunError at once where looking costs no transfer; `step` may be a number on the device."""
        terms = {k: v for k, v in metrics.items() if k != "elbo"} | {"gradient": norm}
        if self.on_device:
            assert self.first is not None
            new = bad & (self.first < 0)
            self.first.copy_(torch.where(new, step, self.first))  # in place: a recorded step knows addresses
            for name, value in terms.items():
                finite = torch.isfinite(value).all()
                known = self.terms.setdefault(name, torch.ones_like(finite))
                known.copy_(torch.where(new, finite, known))
        elif bool(bad):
            self._raise(int(step), {name: torch.isfinite(value).all() for name, value in terms.items()})

    @property
    def memory(self) -> list[Tensor]:
        """What is remembered on the device."""
        return [] if self.first is None else [self.first, *self.terms.values()]

    def check(self, first: int | None = None) -> None:
        """Raises RunError when a bad step has been seen on the device; `first`: its number, where known already."""
        if self.first is None:
            return
        first = int(self.first) if first is None else first
        if first >= 0:
            self._raise(first, self.terms)

    def _raise(self, step: int, terms: dict[str, Tensor]) -> None:
        # A bad step is one for all processes, though the image may have been another's.
        finite = self.ranks.every(torch.stack(list(terms.values()))).tolist()
        name = next((name for name, good in zip(terms, finite, strict=True) if not good), "loss")
        cause = self.CAUSES.get(name, "lower trainer.learning_rate or set trainer.clip_norm=100")
        raise self.ranks.agreed(
            RunError(
                f"training stopped at step {step + 1}: the term '{name}' is not finite; likely cause: {cause}. "
                "The update was not made"
            )
        )
