"""The evidence lower bound, E_q[log p(x, z) - log q(z | x)] <= log p(x) (Kingma & Welling 2014, eq. 2 and 3).

With log w = log p(x, z) - log q(z | x), the bound is E_q[log w]. The three estimators have the same expectation; they
differ in what is computed in closed form and in how it is differentiated. All take two options for training, which
change the surrogate only (the reported bound has KL weight 1 and no free bits):

* kl_weight: surrogate = reconstruction - kl_weight * KL.
* free_bits: lambda nats per dimension, surrogate KL = sum_j max(lambda, mean over the batch of KL_j) (Kingma et al.
  2016, eq. 15): no gradient reaches a dimension while its KL is below lambda. It needs a q and a prior with independent
  dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from vaerun.distributions import DiagonalNormal, LatentDistribution, StandardNormal, kl_by_dimension
from vaerun.errors import InputError
from vaerun.estimators.base import Estimate, reparameterised_samples, reparameterised_terms
from vaerun.models import Joint


def _with_free_bits(by_dimension: Tensor, free_bits: float) -> Tensor:
    """KL by dimension [B, d] -> KL with free bits [B], whose mean over the batch is sum_j max(lambda, mean KL_j)."""
    active = by_dimension.mean(0) > free_bits
    return torch.where(active, by_dimension, free_bits).sum(-1)


def _check_factorised(q: LatentDistribution, prior: LatentDistribution) -> tuple[DiagonalNormal, DiagonalNormal]:
    if not isinstance(q, DiagonalNormal) or not isinstance(prior, StandardNormal | DiagonalNormal):
        raise InputError(
            f"estimator.free_bits needs a posterior with independent dimensions, unlike {type(q).__name__}: "
            "set estimator.free_bits=0, or choose model=vae, cvae or sa_vae"
        )
    return q, prior  # type: ignore[return-value]


def elbo(
    joint: Joint, q: LatentDistribution, samples: int, *, kl_weight: float = 1.0, free_bits: float = 0.0
) -> Estimate:
    """mean_K log p(x | z_k) - KL(q || p), KL in closed form (eq. 3); pathwise gradient.

    Raises InputError if no closed form is registered for this posterior and prior.
    """
    z, _ = reparameterised_samples(joint, q, samples)
    try:
        kl = kl_divergence(q, joint.prior)
    except NotImplementedError as error:
        raise InputError(
            f"estimator=elbo needs a closed form of KL({type(q).__name__} || {type(joint.prior).__name__}), but "
            "there is none: use estimator=elbo_mc"
        ) from error
    reconstruction = joint.log_likelihood(z).mean(0)
    if free_bits:
        weighted = kl_weight * _with_free_bits(kl_by_dimension(*_check_factorised(q, joint.prior)), free_bits)
    else:
        weighted = kl_weight * kl
    return Estimate(reconstruction - kl, reconstruction - weighted, {"reconstruction": reconstruction, "kl": kl})


def _monte_carlo(
    joint: Joint, q: LatentDistribution, samples: int, kl_weight: float, free_bits: float, detach_q: bool
) -> Estimate:
    draw = reparameterised_terms(joint, q, samples, detach_q)
    terms = draw.terms
    if free_bits:
        first, prior = _check_factorised(q.detach() if detach_q else q, joint.prior)
        log_ratio = first.log_prob_by_dimension(draw.z) - prior.log_prob_by_dimension(draw.z)
        weighted = kl_weight * _with_free_bits(log_ratio.mean(0), free_bits)
    else:
        weighted = kl_weight * terms["kl"]
    reconstruction = terms["reconstruction"]
    return Estimate(reconstruction - terms["kl"], reconstruction - weighted, terms)


def elbo_mc(
    joint: Joint, q: LatentDistribution, samples: int, *, kl_weight: float = 1.0, free_bits: float = 0.0
) -> Estimate:
    """mean_K log w_k (eq. 2), KL by Monte Carlo; pathwise gradient; for any reparameterised posterior."""
    return _monte_carlo(joint, q, samples, kl_weight, free_bits, detach_q=False)


def stl(
    joint: Joint, q: LatentDistribution, samples: int, *, kl_weight: float = 1.0, free_bits: float = 0.0
) -> Estimate:
    """mean_K log w_k, "sticking the landing": log q with its parameters detached (Roeder et al. 2017, eq. 8).

    The score term that this omits has mean zero; without it the variance of the gradient vanishes where q is the exact
    posterior.
    """
    return _monte_carlo(joint, q, samples, kl_weight, free_bits, detach_q=True)


for _estimator in (elbo, elbo_mc, stl):
    _estimator.batch_coupling_options = ("free_bits",)  # type: ignore[attr-defined]
