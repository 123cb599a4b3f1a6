"""What the tests of annealing share."""

from __future__ import annotations

import math

import torch
from support.models.members import make_model
from torch import Tensor
from torch.distributions import MultivariateNormal

from vaerun.data.dataset import Split
from vaerun.data.transforms import Transform
from vaerun.evaluation.likelihood.annealed import (
    Annealing,
)
from vaerun.evaluation.likelihood.hmc import LOG_UNIFORM
from vaerun.models import LatentModel
from vaerun.randomness import ImageNoise

QUICK = Annealing(temperatures=40, chains=8, leapfrog_steps=4, acceptance=0.65)
SHORT = Annealing(temperatures=12, chains=4, acceptance=0.65)  # short enough for rounding to stay what it is
CLOSE = Annealing(temperatures=80, chains=500, leapfrog_steps=3, acceptance=0.65)


def make_split(model: LatentModel, n: int, transform: Transform | None = None) -> Split:
    images = torch.randint(0, 256, (n, *model.image_shape), generator=torch.Generator().manual_seed(4))
    return Split("test", images.to(torch.uint8), torch.arange(n) % 3, 3, transform or Transform(), False)


def noise_of(model: LatentModel, n: int, seed: int = 5) -> ImageNoise:
    return ImageNoise(seed, range(n), model.latent_dim + LOG_UNIFORM, model.mean)


def linear_gaussian(context: str = "plain", d: int = 2, prior: float = 0.5) -> LatentModel:
    """With a prior that depends on the label clearly, where the context has one."""
    model = make_model(network="linear", context=context, d=d).eval()
    if model.prior_head is not None:
        with torch.no_grad():
            model.prior_head.weight.normal_(0, prior)
    return model


def tempered(model: LatentModel, x: Tensor, c: Tensor | None, beta: float) -> MultivariateNormal:
    """p(z | c) p(x | z, c)^beta of a linear-Gaussian model, normalised, by its d x d precision."""
    d, prior = model.latent_dim, model.prior(c)
    weight, bias = model.decoder.affine.weight, model.decoder.affine.bias + model.offset.flatten()
    w, s2 = weight[:, :d], model.likelihood.log_variance.exp()
    mean, variance = (torch.zeros(len(x), d), torch.ones(len(x), d)) if prior is None else (prior.mean, prior.variance)
    residual = x.flatten(1) - bias - (0 if c is None else c @ weight[:, d:].mT)
    precision = torch.diag_embed(1 / variance) + beta * w.mT @ w / s2
    moment = mean / variance + beta * residual @ w / s2
    centre = torch.linalg.solve(precision, moment.unsqueeze(-1)).squeeze(-1)
    return MultivariateNormal(centre.detach(), precision_matrix=precision.detach())


def grid_log_likelihood(model: LatentModel, x: Tensor, c: Tensor | None = None) -> Tensor:
    """log p(x | c) [B] by the trapezoid rule over z (d = 1), which converges faster than any power of the spacing."""
    z = torch.linspace(-12, 12, 4001)
    joint = model.joint(x, c)
    with torch.no_grad():
        return torch.logsumexp(joint.log_prob(z[:, None, None].expand(-1, len(x), 1)), 0) + math.log(z[1] - z[0])


def standard_error(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5)
