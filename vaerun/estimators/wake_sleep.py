"""Reweighted wake-sleep (Bornschein & Bengio 2015): model and q have separate objectives on the same weighted samples.

With z_k ~ q and the normalised weights v_k = w_k / sum w detached, the model maximises sum_k v_k log p(x, z_k), whose
gradient is that of the importance-weighted bound ("wake-phase p update", eq. 5), and q maximises
sum_k v_k log q(z_k | x), which minimises the inclusive KL(p(z | x) || q) ("wake-phase q update", eq. 8). For finite K
the weights are biased.
"""

from __future__ import annotations

import torch

from vaerun.distributions import LatentDistribution
from vaerun.estimators.base import Estimate, detached_samples
from vaerun.estimators.multisample import importance_weighted_bound
from vaerun.models import Joint


def wake_sleep(joint: Joint, q: LatentDistribution, samples: int) -> Estimate:
    """Reports the importance-weighted bound; model and q each maximise their weighted log-density.

    q must have been inferred from `joint.detach()`: its update must not reach a decoder it depends on.
    """
    draw = detached_samples(joint, q, samples)
    log_w = draw.log_w.detach()
    weights = torch.softmax(log_w, 0)
    surrogate = (weights * (draw.log_p + draw.log_q)).sum(0)
    return Estimate(importance_weighted_bound(log_w), surrogate, draw.terms, "iwae")


wake_sleep.detach_joint = True  # type: ignore[attr-defined]
