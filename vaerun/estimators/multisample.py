"""Bounds from K weights at once, log w_k = log p(x, z_k) - log q(z_k | x), z_k ~ q.

IWAE (Burda et al. 2016, eq. 8): L_K = E log 1/K sum_k w_k, from the ELBO at K = 1 up towards log p(x).
DReG (Tucker et al. 2019, eq. 8): the same bound, q's gradient with the score terms removed twice over.
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
"""In units of eps: orders alpha nearer to 1 are refused. The logarithm's rounding is divided by 1 - alpha, and the
bound is the ELBO to within (1 - alpha) / 2 times the variance of log w."""


def importance_weighted_bound(log_w: Tensor) -> Tensor:
    """log 1/K sum_k w_k: [K, B] -> [B] nats."""
    return torch.logsumexp(log_w, 0) - math.log(len(log_w))


def iwae(joint: Joint, q: LatentDistribution, samples: int) -> Estimate:
    """The importance-weighted bound, differentiated pathwise as it stands."""
    draw = reparameterised_terms(joint, q, samples)
    bound = importance_weighted_bound(draw.log_w)
    return Estimate(bound, bound, draw.terms, "iwae")


def dreg(joint: Joint, q: LatentDistribution, samples: int) -> Estimate:
    """The importance-weighted bound with the doubly reparameterised gradient.

    With normalised weights v_k = w_k / sum w: the model's own parameters get sum_k v_k grad log p(x, z_k); q's
    parameters get sum_k v_k^2 (d log w_k / d z_k) (d z_k / d parameters), log q itself held. At K = 1 it is `stl`.
    """
    draw = reparameterised_terms(joint, q, samples, detach_q=True)
    log_w = draw.log_w
    weights = torch.softmax(log_w.detach(), 0)
    if draw.z.requires_grad:
        # What comes back through z is multiplied by v_k once more; what reaches the model directly is not.
        draw.z.register_hook(lambda gradient: gradient * weights.unsqueeze(-1))
    return Estimate(importance_weighted_bound(log_w), (weights * log_w).sum(0), draw.terms, "iwae")


def renyi(joint: Joint, q: LatentDistribution, samples: int, *, alpha: float) -> Estimate:
    """The variational Renyi bound, differentiated as it stands; alpha = 0 is `iwae`, alpha -> 1 the ELBO.

    For alpha >= 0 a lower bound of log p(x) in expectation. For alpha < 0 it is none, and is named so in records.

    Raises InputError for alpha at or near 1, where the formula is 0/0, and for one that is not finite.
    """
    if not math.isfinite(alpha):
        raise InputError(f"estimator.alpha must be a finite number, got {alpha}")
    near = NEAR_ONE * torch.finfo(joint.x.dtype).eps
    if abs(alpha - 1) < near:
        raise InputError(
            f"estimator.alpha={alpha}: at alpha=1 the Renyi bound is the ELBO, and within {near:.2g} of it rounding "
            "spoils it: use estimator=elbo_mc"
        )
    draw = reparameterised_terms(joint, q, samples)
    bound = importance_weighted_bound((1 - alpha) * draw.log_w) / (1 - alpha)
    return Estimate(bound, bound, draw.terms, "renyi" if alpha >= 0 else "renyi_no_lower_bound")
