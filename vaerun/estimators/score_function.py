"""The score-function (REINFORCE) estimator of the ELBO's gradient (Mnih & Gregor 2014; Williams 1992).

With z ~ q detached, grad E_q[log w] = E_q[grad log p(x, z) + (log w - b) grad log q(z | x)] for any b that does not
depend on z. No gradient flows through the sample, so q need not be reparameterised, but the variance is
high; the control variate b removes most of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vaerun.distributions import LatentDistribution
from vaerun.errors import InputError
from vaerun.estimators.base import Estimate, detached_samples
from vaerun.models import Joint

CONTROL_VARIATES = ("none", "mean", "leave_one_out")
DECAY = 0.9  # decay of the running mean per training step


class ScoreFunction(nn.Module):
    """mean_K log w_k with the score-function gradient.

    Arguments:
        control_variate: b. `none`: 0. `mean`: running mean of log w over earlier steps (a single number, saved in
            checkpoints). `leave_one_out`: for sample k the mean over the other K - 1 samples of the same image (Mnih &
            Rezende 2016, eq. 6 with the arithmetic mean).

    Raises InputError for an unknown control variate, and for K = 1 with leave_one_out.
    """

    weighted_sum: Tensor
    weight: Tensor

    def __init__(self, control_variate: str = "leave_one_out") -> None:
        super().__init__()
        if control_variate not in CONTROL_VARIATES:
            raise InputError(
                f"unknown estimator.control_variate '{control_variate}': choose one of {', '.join(CONTROL_VARIATES)}"
            )
        self.control_variate = control_variate
        if control_variate == "mean":
            self.register_buffer("weighted_sum", torch.zeros((), dtype=torch.float32))
            self.register_buffer("weight", torch.zeros((), dtype=torch.float32))

    @property
    def batch_coupling(self) -> str | None:
        """The running mean is over all images of a batch."""
        return "estimator.control_variate=mean" if self.control_variate == "mean" else None

    def forward(self, joint: Joint, q: LatentDistribution, samples: int) -> Estimate:
        draw = detached_samples(joint, q, samples)
        signal = draw.log_w.detach()
        score = draw.log_q * (signal - self.baseline(signal))
        if self.training and self.control_variate == "mean":
            # Updated after use: a baseline that depends on this step's samples would bias the gradient.
            self.weighted_sum.mul_(DECAY).add_((1 - DECAY) * signal.mean())
            self.weight.mul_(DECAY).add_(1 - DECAY)
        return Estimate(signal.mean(0), (draw.log_p + score).mean(0), draw.terms)

    def baseline(self, signal: Tensor) -> Tensor:
        """b for the learning signals [K, B], broadcastable to them."""
        if self.control_variate == "mean":
            # Divided by the sum of weights, to correct the bias towards the initial zero.
            return torch.where(self.weight > 0, self.weighted_sum / self.weight.clamp(min=1e-12), 0.0)
        if self.control_variate == "leave_one_out":
            if len(signal) < 2:
                raise InputError(
                    "estimator.control_variate=leave_one_out needs several samples per image: set estimator.samples to "
                    "at least 2, or estimator.control_variate=mean"
                )
            return (signal.sum(0) - signal) / (len(signal) - 1)
        return torch.zeros_like(signal)
