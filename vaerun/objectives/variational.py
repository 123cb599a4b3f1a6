"""Likelihood models: one phase, one estimator."""

from __future__ import annotations

from torch import Tensor, nn

from vaerun.data.dataset import Batch
from vaerun.estimators import Estimator
from vaerun.models import LatentModel
from vaerun.objectives.base import Phase


class Variational(nn.Module):
    """Ascends an estimator's surrogate.

    Arguments:
        model: the latent-variable model.
        estimator: see vaerun.estimators.
        samples: K.
    """

    def __init__(self, model: LatentModel, estimator: Estimator, samples: int) -> None:
        super().__init__()
        self.model, self.estimator, self.samples = model, estimator, samples
        self.phases = {"model": Phase(model.parameter_groups())}

    def loss(self, phase: str, step: int, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """-surrogate [B]; metrics: elbo (the bound, with the transform's log|det|) and its terms, nats per image."""
        joint = self.model.joint(batch.x, batch.c if self.model.classes else None)
        estimate = self.estimator(joint, self.model.infer(joint), self.samples)
        terms = {name: value.detach() for name, value in estimate.terms.items()}
        if "reconstruction" in terms:
            terms["reconstruction"] = terms["reconstruction"] + batch.log_det
        return -estimate.surrogate, {"elbo": estimate.bound.detach() + batch.log_det, **terms}

    def after_step(self, step: int) -> None:
        """Nothing to do."""
