"""Reweighted wake-sleep (Bornschein & Bengio 2015): each side follows its own objective on the same weighted samples.

With z_k ~ q and normalised weights v_k = w_k / sum w, held fixed: the model ascends sum_k v_k log p(x, z_k), the
gradient of the importance-weighted bound ("wake-phase p update", eq. 5); q ascends sum_k v_k log q(z_k | x), which
descends the inclusive KL(p(z | x) || q) ("wake-phase q update", eq. 8). With finite K the weights are biased.
"""

from __future__ import annotations

import torch

from vaerun.distributions import LatentDistribution
from vaerun.estimators.base import Estimate, detached_samples
from vaerun.estimators.multisample import importance_weighted_bound
from vaerun.models import Joint


def wake_sleep(joint: Joint, q: LatentDistribution, samples: int) -> Estimate:
    """The importance-weighted bound is reported; model and q each ascend their own weighted log-density.

    q must have been inferred from `joint.detach()`: its update must not reach a decoder that it depends on.
    """
    draw = detached_samples(joint, q, samples)
    log_w = draw.log_w.detach()
    weights = torch.softmax(log_w, 0)
    surrogate = (weights * (draw.log_p + draw.log_q)).sum(0)
    return Estimate(importance_weighted_bound(log_w), surrogate, draw.terms, "iwae")


wake_sleep.detach_joint = True  # type: ignore[attr-defined]
