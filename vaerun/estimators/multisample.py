"""Multi-sample bounds, from K weights log w_k = log p(x, z_k) - log q(z_k | x), z_k ~ q.

IWAE (Burda et al. 2016, eq. 8): L_K = E log 1/K sum_k w_k, from the ELBO at K = 1 up towards log p(x).
DReG (Tucker et al. 2019, eq. 8): the same bound, with all score terms removed from q's gradient.
Renyi (Li & Turner 2016, eq. 13): 1/(1 - alpha) log 1/K sum_k w_k^(1 - alpha).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaerun.distributions import LatentDistribution
from vaerun.errors import InputError
from vaerun.estimators.base import Estimate, reparameterised_terms
from vaerun.models import Joint

NEAR_ONE = 1e4
"""Orders alpha within this many eps of 1 are rejected: the rounding of the logarithm is divided by 1 - alpha, and the
bound is the ELBO to within (1 - alpha) / 2 times the variance of log w."""


def importance_weighted_bound(log_w: Tensor) -> Tensor:
    """log 1/K sum_k w_k: [K, B] -> [B] nats."""
    return torch.logsumexp(log_w, 0) - math.log(len(log_w))


def iwae(joint: Joint, q: LatentDistribution, samples: int) -> Estimate:
    """The importance-weighted bound with its pathwise gradient."""
    draw = reparameterised_terms(joint, q, samples)
    bound = importance_weighted_bound(draw.log_w)
    return Estimate(bound, bound, draw.terms, "iwae")


def dreg(joint: Joint, q: LatentDistribution, samples: int) -> Estimate:
    """The importance-weighted bound with the doubly reparameterised gradient.

    With normalised weights v_k = w_k / sum w, the gradient of the model's parameters is sum_k v_k grad log p(x, z_k),
    that of q's parameters sum_k v_k^2 (d log w_k / d z_k) (d z_k / d parameters). At K = 1 it is `stl`.
    """
    draw = reparameterised_terms(joint, q, samples, detach_q=True)
    log_w = draw.log_w
    weights = torch.softmax(log_w.detach(), 0)
    if draw.z.requires_grad:
        # The gradient through z gets a second factor v_k; the model's direct gradient does not.
        draw.z.register_hook(lambda gradient: gradient * weights.unsqueeze(-1))
    return Estimate(importance_weighted_bound(log_w), (weights * log_w).sum(0), draw.terms, "iwae")


def renyi(joint: Joint, q: LatentDistribution, samples: int, *, alpha: float) -> Estimate:
    """The variational Renyi bound with its pathwise gradient; alpha = 0 is `iwae`, alpha -> 1 the ELBO.

    For alpha >= 0 it is a lower bound on log p(x) in expectation; for alpha < 0 it is not, and its name says so.

    Raises InputError for alpha at or near 1, where the formula is 0/0, and for a non-finite alpha.
    """
    if not math.isfinite(alpha):
        raise InputError(f"estimator.alpha must be a finite number, got {alpha}")
    near = NEAR_ONE * torch.finfo(joint.x.dtype).eps
    if abs(alpha - 1) < near:
        raise InputError(
            f"estimator.alpha={alpha} is within {near:.2g} of 1, where the Renyi bound is the ELBO and rounding errors "
            "dominate: use estimator=elbo_mc"
        )
    draw = reparameterised_terms(joint, q, samples)
    bound = importance_weighted_bound((1 - alpha) * draw.log_w) / (1 - alpha)
    return Estimate(bound, bound, draw.terms, "renyi" if alpha >= 0 else "renyi_no_lower_bound")
