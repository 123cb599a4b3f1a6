"""A loss or gradient that is not finite never reaches the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from vaerun.distributed.collectives import Ranks
from vaerun.errors import RunError


class FiniteGuard:
    """Checks every loss and gradient norm; raises at once on the CPU, at the next `check` on a GPU.

    Loss and norm are those of the whole batch, so all ranks of a run find the same step bad.
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
        # The first bad step, and which of its terms were not finite. Updated in place: a graph holds their addresses.
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=device) if self.on_device else None
        self.non_finite: dict[tuple[str, ...], Tensor] = {}  # by the names of a phase's terms

    def check_update(self, step: int | Tensor, loss: Tensor, norm: Tensor, terms: Mapping[str, Tensor]) -> Tensor:
        """Whether to skip the update, [] bool: loss or gradient is not finite.

        Arguments:
            step: steps done, on the host or on the device.
            loss: of the batch, [].
            norm: of the gradient, [].
            terms: of the loss, by name: of any shape on the CPU; on a GPU sums over the batch, [].

        Raises RunError on the CPU.
        """
        terms = {k: v.detach() for k, v in terms.items() if k != "elbo"} | {"gradient": norm}
        if not self.on_device:
            bad = ~(torch.isfinite(loss.detach()) & torch.isfinite(norm))
            if bool(bad):
                self._raise(int(step), {name: torch.isfinite(value).all() for name, value in terms.items()})
            return bad
        assert self.first_bad_step is not None
        finite = torch.isfinite(torch.stack([loss.detach(), *(v.to(loss.dtype) for v in terms.values())]))
        bad = ~(finite[0] & finite[-1])
        is_first = bad & (self.first_bad_step < 0)
        self.first_bad_step.copy_(torch.where(is_first, step, self.first_bad_step))
        non_finite = self.non_finite.setdefault(tuple(terms), torch.zeros_like(finite[1:]))
        non_finite.copy_(torch.where(is_first, ~finite[1:], non_finite))
        return bad

    @property
    def mutable_tensors(self) -> list[Tensor]:
        """The guard's state on the device."""
        return [] if self.first_bad_step is None else [self.first_bad_step, *self.non_finite.values()]

    def check(self, first_bad_step: int | None = None) -> None:
        """Raises RunError where a step on the device was bad; `first_bad_step`: as already transferred to the host."""
        if self.first_bad_step is None:
            return
        step = int(self.first_bad_step) if first_bad_step is None else first_bad_step
        if step >= 0:
            # Only the first bad phase has flags set.
            terms = {k: ~v for names, flags in self.non_finite.items() for k, v in zip(names, flags, strict=True)}
            self._raise(step, terms)

    def _raise(self, step: int, is_finite: dict[str, Tensor]) -> None:
        # All ranks are here, but the terms are a shard's: the bad image may be another rank's.
        flags = self.ranks.all_true(torch.stack(list(is_finite.values()))).tolist()
        non_finite = [name for name, finite in zip(is_finite, flags, strict=True) if not finite]
        # A posterior that is not finite makes the reconstruction non-finite too: blame the posterior.
        name = "kl" if "kl" in non_finite else next(iter(non_finite), "loss")
        cause = self.CAUSES.get(name, "lower trainer.learning_rate or set trainer.clip_norm=100")
        raise self.ranks.mark_collective(
            RunError(
                f"training stopped at step {step + 1}: the term '{name}' is not finite; likely cause: {cause}. "
                "The update was skipped"
            )
        )
