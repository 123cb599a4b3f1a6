"""Shared by the tests of extreme values: models in single and double precision with the same noise."""

from __future__ import annotations

import copy

import torch
from support.models.draw import draw
from support.models.members import make_model
from torch import Tensor

from vaerun.evaluation.likelihood.importance import importance_statistics
from vaerun.models import Joint, LatentModel
from vaerun.randomness import ImageNoise

EPS = torch.finfo(torch.float32).eps


def make(posterior: str, likelihood: str = "gaussian", network: str = "mlp", **options) -> LatentModel:
    if posterior == "draw":
        return draw(likelihood=likelihood)
    return make_model(posterior, likelihood, network, **options)


def doubled(model: LatentModel) -> LatentModel:
    return copy.deepcopy(model).double()


class SameNoise:
    """Per-image noise, drawn in single precision and cast to the dtype of the model."""

    def __init__(self, model: LatentModel, rows: int) -> None:
        self.source = ImageNoise(3, range(rows), model.latent_dim, torch.zeros((), dtype=torch.float32))
        self.dtype = model.mean.dtype

    def __call__(self, stream: str, k: int) -> Tensor:
        return self.source(stream, k).to(self.dtype)


def joint_of(model: LatentModel, x: Tensor) -> Joint:
    return model.joint(x.to(model.mean.dtype), None, SameNoise(model, len(x)))


def set_log_variance(model: LatentModel, value: float) -> None:
    """q's log-variance everywhere, before refinement."""
    inference = model.inference
    layer = inference.log_variance if hasattr(inference, "log_variance") else inference.base.log_variance
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(value)


def drift(model: LatentModel, x: Tensor, samples: int = 100) -> dict[str, float]:
    """The largest change of a result from single to double precision, in units of eps (|log p(x|z)| + |KL| + D)."""
    results = []
    for member in (model, doubled(model)):
        with torch.no_grad():
            joint = joint_of(member, x)
            results.append(importance_statistics(joint, member.infer(joint), samples))
    single, double = results
    size = double["reconstruction"].abs() + double["kl"].abs() + x[0].numel()
    return {k: float(((single[k] - double[k]).abs() / size).max()) / EPS for k in ("log_likelihood", "elbo", "kl")}
