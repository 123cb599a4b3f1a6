"""Exact expected gradients: every estimator is a function of standard normal noise, which quadrature integrates.

Each node of the rule is one row of a batch, and all rows are the same image. Gauss-Hermite with n nodes a dimension is
exact for polynomials of degree 2 n - 1: to rounding on a linear-Gaussian model, closely on a small smooth one.
"""

from __future__ import annotations

import numpy as np
import torch
from support.models.members import Network, Posterior, make_data, make_model
from torch import Tensor

from vaerun.estimators import Estimator, estimate
from vaerun.models import LatentModel

D = 2

Gradient = dict[str, Tensor]  # of each part of the model


def gauss_hermite(nodes: int, dimensions: int) -> tuple[Tensor, Tensor]:
    """Points [n, dimensions] and weights [n] that integrate against a standard normal."""
    x, w = (torch.as_tensor(a) for a in np.polynomial.hermite_e.hermegauss(nodes))
    points = torch.cartesian_prod(*[x] * dimensions).view(-1, dimensions)
    return points, torch.cartesian_prod(*[w / w.sum()] * dimensions).view(-1, dimensions).prod(1)


class NodeNoise:
    """The posterior's noise [K, n, d] at the nodes; every other stream is the same for all rows, as for one image."""

    def __init__(self, points: Tensor) -> None:
        self.points = points

    def __call__(self, stream: str, k: int) -> Tensor:
        if stream == "posterior":
            return self.points[:k]
        source = torch.Generator().manual_seed(sum(stream.encode()))
        return torch.randn(k, 1, D, generator=source).expand(k, self.points.shape[1], D)


def by_part(model: LatentModel, value: Tensor) -> Gradient:
    """Gradients of q's parameters and of the model's, each as one vector."""
    names = [name for name, _ in model.named_parameters()]
    gradients = torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)
    parts = {"q": [], "p": []}
    for name, g in zip(names, gradients, strict=True):
        parts["q" if name.startswith("inference.") else "p"].append(g.flatten())
    return {name: torch.cat(values) for name, values in parts.items() if values}


def mean_gradient(model: LatentModel, estimator: Estimator, samples: int, nodes: int, c: Tensor | None) -> Gradient:
    """Of the surrogate for one image, by quadrature over its samples' noise."""
    points, weights = gauss_hermite(nodes, samples * D)
    rows = len(weights)
    joint = model.joint(
        make_data(model, 1)[0].expand(rows, -1, -1, -1),
        None if c is None else c.expand(rows, -1),
        NodeNoise(points.view(rows, samples, D).movedim(1, 0)),
    )
    return by_part(model, (estimate(estimator, model.infer, joint, samples).surrogate * weights).sum())


def smooth_model(
    posterior: str | Posterior, likelihood: str = "gaussian", context: str = "plain", network: str | Network = "mlp"
) -> tuple[LatentModel, Tensor | None]:
    """A model whose log-weights vary by a few nats, and its label: integrands that few nodes resolve."""
    model = make_model(posterior, likelihood, network, context, d=D)
    with torch.no_grad():
        if network == "mlp":
            for layer in model.decoder.stack.layers:
                layer.weight.mul_(0.4)
        for name, parameter in model.inference.named_parameters():
            if "log_variance." in name:
                parameter.mul_(0.5)
        if likelihood == "gaussian":
            model.likelihood.log_variance.fill_(1.0)
    return model, make_data(model, 1)[1]


def distance(result: Gradient, truth: Gradient) -> dict[str, float]:
    """Relative error of each part; for a part with a vanishing gradient, relative to the total norm."""
    total_norm = sum(t.square().sum() for t in truth.values()).sqrt()
    return {name: float((result[name] - t).norm() / t.norm().clamp(min=1e-3 * total_norm)) for name, t in truth.items()}


def check(result: Gradient, truth: Gradient, tolerance: float) -> None:
    assert result.keys() == truth.keys()
    assert max(distance(result, truth).values()) < tolerance
