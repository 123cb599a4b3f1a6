"""The evidence lower bound, E_q[log p(x, z) - log q(z | x)] <= log p(x) (Kingma & Welling 2014, eq. 2 and 3)."""

from __future__ import annotations

from torch.distributions import kl_divergence

from vaerun.distributions import LatentDistribution
from vaerun.errors import InputError
from vaerun.estimators.base import Estimate
from vaerun.models import Joint


def elbo(joint: Joint, q: LatentDistribution, samples: int) -> Estimate:
    """mean_K log p(x | z_k) - KL(q || p), KL in closed form (eq. 3); differentiated pathwise.

    Raises InputError where no closed form is known for this posterior and prior.
    """
    try:
        kl = kl_divergence(q, joint.prior)
    except NotImplementedError as error:
        raise InputError(
            f"estimator=elbo needs KL({type(q).__name__} || {type(joint.prior).__name__}) in closed form, and there is "
            "none: use estimator=elbo_mc"
        ) from error
    z, _ = q.rsample_with_log_prob((samples,), noise=joint.noise("posterior", samples))
    reconstruction = joint.log_likelihood(z).mean(0)
    bound = reconstruction - kl
    return Estimate(bound, bound, {"reconstruction": reconstruction, "kl": kl})


def elbo_mc(joint: Joint, q: LatentDistribution, samples: int) -> Estimate:
    """mean_K log w_k, log w = log p(x, z) - log q(z | x) (eq. 2); differentiated pathwise; for every posterior."""
    z, log_q = q.rsample_with_log_prob((samples,), noise=joint.noise("posterior", samples))
    reconstruction = joint.log_likelihood(z).mean(0)
    kl = (log_q - joint.prior.log_prob(z)).mean(0)
    bound = reconstruction - kl
    return Estimate(bound, bound, {"reconstruction": reconstruction, "kl": kl})
