"""What a plain autoencoder is trained on: its reconstruction, and nothing about z.

With z = e(x) a point, log p(x | e(x)) is no bound on a likelihood: z has no density. With a linear encoder and decoder
and Gaussian pixels its optimum spans the first principal components (Baldi & Hornik 1989).
"""

from __future__ import annotations

from vaerun.distributions import Delta, LatentDistribution
from vaerun.errors import InputError
from vaerun.estimators.base import Estimate
from vaerun.models import Joint


def reconstruction(joint: Joint, q: LatentDistribution, samples: int) -> Estimate:
    """log p(x | z) at the encoder's z; reported as `reconstruction`, for it is no ELBO. K has no effect.

    Raises InputError where q is a distribution.
    """
    if not isinstance(q, Delta):
        raise InputError(
            "estimator=reconstruction is for the plain autoencoder (model=ae): this model has a posterior over z, use "
            "estimator=elbo or another bound"
        )
    found = joint.log_likelihood(q.value.unsqueeze(0))[0]
    return Estimate(found, found, {"reconstruction": found}, "reconstruction")
