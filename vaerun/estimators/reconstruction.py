"""The objective of a plain autoencoder: the reconstruction alone.

As z = e(x) has no density, log p(x | e(x)) bounds no likelihood. With a linear encoder and decoder and Gaussian pixels
its optimum spans the leading principal components (Baldi & Hornik 1989).
"""

from __future__ import annotations

from vaerun.distributions import Delta, LatentDistribution
from vaerun.errors import InputError
from vaerun.estimators.base import Estimate
from vaerun.models import Joint


def reconstruction(joint: Joint, q: LatentDistribution, samples: int) -> Estimate:
    """log p(x | z) at the encoder's z; reported as `reconstruction`, since it is not an ELBO. K has no effect.

    Raises InputError unless q is a Delta.
    """
    if not isinstance(q, Delta):
        raise InputError(
            "estimator=reconstruction is for the plain autoencoder (model=ae), but this model has a posterior over z: "
            "use estimator=elbo or another bound"
        )
    log_likelihood = joint.log_likelihood(q.value.unsqueeze(0))[0]
    return Estimate(log_likelihood, log_likelihood, {"reconstruction": log_likelihood}, "reconstruction")
