"""Guards the parameters against non-finite losses and gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from vaerun.distributed.collectives import Ranks
from vaerun.errors import RunError


class FiniteGuard:
    """Checks every loss and gradient norm; raises at once on the CPU, at the next `check` on a GPU.

    Loss and norm are those of the whole batch, so that all ranks agree on which step is bad.
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
        # The first bad step and its non-finite terms, updated in place because a CUDA graph holds their addresses.
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=device) if self.on_device else None
        self.non_finite: dict[tuple[str, ...], Tensor] = {}  # flags, by the names of a phase's terms

    def check_update(self, step: int | Tensor, loss: Tensor, norm: Tensor, terms: Mapping[str, Tensor]) -> Tensor:
        """Return whether to skip the update, [] bool, because loss or gradient is not finite.

        Arguments:
            step: number of steps done, on the host or on the device.
            loss: loss of the batch, [].
            norm: gradient norm, [].
            terms: terms of the loss by name; of any shape on the CPU, summed over the batch [] on a GPU.

        On the CPU, raises RunError instead of returning True.
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
        """Raise RunError if a step on the device was bad; `first_bad_step` is its number if already on the host."""
        if self.first_bad_step is None:
            return
        step = int(self.first_bad_step) if first_bad_step is None else first_bad_step
        if step >= 0:
            # Only the first bad phase has flags set.
            terms = {k: ~v for names, flags in self.non_finite.items() for k, v in zip(names, flags, strict=True)}
            self._raise(step, terms)

    def _raise(self, step: int, is_finite: dict[str, Tensor]) -> None:
        # All ranks get here, but the terms are those of a shard: the bad image may belong to another rank.
        flags = self.ranks.all_true(torch.stack(list(is_finite.values()))).tolist()
        non_finite = [name for name, finite in zip(is_finite, flags, strict=True) if not finite]
        # A non-finite posterior also makes the reconstruction non-finite: blame the posterior.
        name = "kl" if "kl" in non_finite else next(iter(non_finite), "loss")
        cause = self.CAUSES.get(name, "lower trainer.learning_rate or set trainer.clip_norm=100")
        raise self.ranks.mark_collective(
            RunError(
                f"training stopped at step {step + 1}: the term '{name}' is not finite; likely cause: {cause}. "
                "The update was skipped"
            )
        )
