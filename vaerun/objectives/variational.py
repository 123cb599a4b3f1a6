"""The objective of likelihood models: one phase, one estimator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vaerun.data.dataset import Batch
from vaerun.estimators import Estimator, batch_coupling, estimate
from vaerun.models import LatentModel
from vaerun.objectives.base import Diagnostics, Phase


@dataclass(frozen=True)
class KLWarmup:
    """A KL weight that grows linearly from 0 to `weight` over the first `steps` training steps."""

    weight: float
    steps: int

    def __call__(self, step: int | Tensor) -> float | Tensor:
        """The weight after `step` completed steps, a number or a tensor on the device."""
        if isinstance(step, Tensor):
            return self.weight * (step / self.steps).clamp(max=1.0)
        return self.weight * min(1.0, step / self.steps)


class Variational(nn.Module):
    """Maximises an estimator's surrogate.

    Arguments:
        model: the latent-variable model.
        estimator: see vaerun.estimators.
        samples: K.
        kl_warmup: KL weight by step, for estimators with `kl_weight`; None: the estimator's own.
    """

    def __init__(
        self, model: LatentModel, estimator: Estimator, samples: int, kl_warmup: KLWarmup | None = None
    ) -> None:
        super().__init__()
        self.model, self.estimator, self.samples, self.kl_warmup = model, estimator, samples, kl_warmup
        self.phases = {"model": Phase(model.parameter_groups())}

    def loss(self, phase: str, step: int | Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """-surrogate [B]; metrics: elbo (KL weight 1, with log|det| of the transform) and its terms, nats per image.

        An estimator of another bound adds that bound under its name.
        """
        joint = self.model.joint(batch.x, batch.c if self.model.classes else None)
        options: dict[str, Any] = {} if self.kl_warmup is None else {"kl_weight": self.kl_warmup(step)}
        result = estimate(self.estimator, self.model.infer, joint, self.samples, **options)
        metrics = {name: value.detach() for name, value in result.terms.items()}
        if {"reconstruction", "kl"} <= metrics.keys():
            metrics["elbo"] = metrics["reconstruction"] - metrics["kl"] + batch.log_det
        if "reconstruction" in metrics:
            metrics["reconstruction"] = metrics["reconstruction"] + batch.log_det
        metrics[result.name] = result.bound.detach() + batch.log_det
        if self.kl_warmup is not None:
            metrics["kl_weight"] = torch.ones_like(metrics[result.name]) * options["kl_weight"]
        return -result.surrogate, metrics

    @property
    def batch_coupling(self) -> str | None:
        """The estimator's batch coupling."""
        return batch_coupling(self.estimator)

    def sync_flags(self, every: Callable[[Tensor], Tensor]) -> None:
        """Nothing to do."""

    def after_step(self, step: int | Tensor) -> None:
        """Nothing to do."""

    def diagnostics(self) -> Diagnostics:
        """Nothing beyond the metrics."""
        return Diagnostics()
