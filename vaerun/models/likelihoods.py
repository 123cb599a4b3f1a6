"""p(x | z) as a function of the decoder's output eta, the natural parameter: log-density, score and Fisher weight.

With the residual r = d log p / d eta and the weight F, the Fisher information per pixel, Laplace inference needs only
J'r and J'FJ (J = d eta / dz), so these three functions are all that a new likelihood must define.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli as BernoulliDistribution
from torch.distributions import Distribution, Independent, Normal
from torch.nn import functional as F

from vaerun.distributions.normal import LOG_2PI


class Gaussian(nn.Module):
    """N(x; eta, s2 I) with one shared scalar variance s2, learned or fixed.

    Arguments:
        variance: initial (or fixed) s2, usually the variance of the data.
        learned: whether s2 is a parameter.
    """

    name = "gaussian"
    constant_fisher = True  # F does not depend on eta, which makes the Gram path possible

    def __init__(self, variance: float, learned: bool = True) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.tensor(math.log(variance)), requires_grad=learned)

    @staticmethod
    def output_offset(mean: Tensor) -> Tensor:
        """The decoder output [C, H, W] at which E[x | eta] is the data's mean."""
        return mean

    def log_prob(self, x: Tensor, eta: Tensor) -> Tensor:
        """x [B, C, H, W], eta [..., B, C, H, W] -> [..., B] nats per image."""
        squared = F.mse_loss(eta, x.expand_as(eta), reduction="none")  # half as many passes over pixels as (eta - x)^2
        return self.log_prob_from_squared_error(squared.flatten(-3).sum(-1), x[0].numel())

    def log_prob_from_squared_error(self, squared: Tensor, dimensions: int) -> Tensor:
        """log_prob from |x - eta|^2 [..., B] and D, for callers with a cheaper way to compute the distance."""
        return -0.5 * (squared * torch.exp(-self.log_variance) + dimensions * (self.log_variance + LOG_2PI))

    def score(self, x: Tensor, eta: Tensor) -> Tensor:
        """d log p / d eta, shape of eta."""
        return (x - eta) * torch.exp(-self.log_variance)

    def fisher(self, eta: Tensor) -> Tensor:
        """F per pixel, broadcastable to eta's shape."""
        return torch.exp(-self.log_variance).expand_as(eta)

    def distribution(self, eta: Tensor) -> Distribution:
        """p(x | eta) over images."""
        return Independent(Normal(eta, torch.exp(0.5 * self.log_variance).expand_as(eta)), 3)

    def mean(self, eta: Tensor) -> Tensor:
        """E[x | eta], shape of eta."""
        return eta


class Bernoulli(nn.Module):
    """Independent Bernoulli pixels with logits eta."""

    name = "bernoulli"
    constant_fisher = False

    @staticmethod
    def output_offset(mean: Tensor) -> Tensor:
        """Logits [C, H, W] of the data's mean, clamped to probabilities in [0.001, 0.999]."""
        return torch.logit(mean.clamp(1e-3, 1 - 1e-3))

    def log_prob(self, x: Tensor, eta: Tensor) -> Tensor:
        """x [B, C, H, W] of 0 and 1, eta [..., B, C, H, W] -> [..., B] nats per image."""
        return (x * eta - F.softplus(eta)).flatten(-3).sum(-1)

    def score(self, x: Tensor, eta: Tensor) -> Tensor:
        """d log p / d eta = x - p, shape of eta."""
        return x - torch.sigmoid(eta)

    def fisher(self, eta: Tensor) -> Tensor:
        """F = p (1 - p) per pixel, shape of eta."""
        p = torch.sigmoid(eta)
        return p * (1 - p)

    def distribution(self, eta: Tensor) -> Distribution:
        """p(x | eta) over images."""
        return Independent(BernoulliDistribution(logits=eta), 3)

    def mean(self, eta: Tensor) -> Tensor:
        """E[x | eta], shape of eta."""
        return torch.sigmoid(eta)
