"""The rule that a loss which is not finite never reaches the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from vaerun.distributed.collectives import Ranks
from vaerun.errors import RunError


class FiniteGuard:
    """Sees every loss and gradient norm; on a GPU the host learns of a bad one at the next `check`, else at once.

    What it is told of as bad is so for all processes of the run, at the same step.
    """

    CAUSES: ClassVar = {
        "kl": "the posterior's variance or mean diverged, or (model=vlae) its precision has no Cholesky factor in "
        "single precision, as when the likelihood's variance is tiny: lower trainer.learning_rate or "
        "trainer.variance_learning_rate, or set trainer.clip_norm=100",
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
        # The first bad step, and which of its terms were spoiled: in place, as a recorded step knows addresses.
        self.first = torch.full((), -1, dtype=torch.int64, device=device) if self.on_device else None
        self.spoiled: dict[tuple[str, ...], Tensor] = {}  # by names of terms: each phase has its own

    def check_update(self, step: int | Tensor, loss: Tensor, norm: Tensor, terms: Mapping[str, Tensor]) -> Tensor:
        """Whether the update must not be made, [] bool: loss or gradient is not finite.

        Arguments:
            step: steps done; it may be a number on the device.
            loss: of the batch, [].
            norm: of the gradient, [].
            terms: by name, of any shape on the CPU, [] on a GPU: sums over the batch, which a bad image spoils.

        Raises RunError at once where looking costs no transfer.
        """
        terms = {k: v.detach() for k, v in terms.items() if k != "elbo"} | {"gradient": norm}
        if not self.on_device:
            bad = ~(torch.isfinite(loss.detach()) & torch.isfinite(norm))
            if bool(bad):
                self._raise(int(step), {name: torch.isfinite(value).all() for name, value in terms.items()})
            return bad
        assert self.first is not None
        finite = torch.isfinite(torch.stack([loss.detach(), *(v.to(loss.dtype) for v in terms.values())]))
        bad = ~(finite[0] & finite[-1])
        new = bad & (self.first < 0)
        self.first.copy_(torch.where(new, step, self.first))
        known = self.spoiled.setdefault(tuple(terms), torch.zeros_like(finite[1:]))
        known.copy_(torch.where(new, ~finite[1:], known))
        return bad

    @property
    def mutable_tensors(self) -> list[Tensor]:
        """What is remembered on the device."""
        return [] if self.first is None else [self.first, *self.spoiled.values()]

    def check(self, first: int | None = None) -> None:
        """Raises RunError when a bad step has been seen on the device; `first`: its number, where known already."""
        if self.first is None:
            return
        first = int(self.first) if first is None else first
        if first >= 0:
            # Only the phase that was bad first has noted terms.
            terms = {k: ~v for names, flags in self.spoiled.items() for k, v in zip(names, flags, strict=True)}
            self._raise(first, terms)

    def _raise(self, step: int, terms: dict[str, Tensor]) -> None:
        # A bad step is one for all processes, though the image may have been another's.
        finite = self.ranks.all_true(torch.stack(list(terms.values()))).tolist()
        lost = [name for name, good in zip(terms, finite, strict=True) if not good]
        # Samples of a posterior that is not finite spoil the reconstruction too: the posterior is to be named.
        name = "kl" if "kl" in lost else next(iter(lost), "loss")
        cause = self.CAUSES.get(name, "lower trainer.learning_rate or set trainer.clip_norm=100")
        raise self.ranks.agreed(
            RunError(
                f"training stopped at step {step + 1}: the term '{name}' is not finite; likely cause: {cause}. "
                "The update was not made"
            )
        )
