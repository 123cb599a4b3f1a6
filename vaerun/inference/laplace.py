"""Variational Laplace inference (Park et al. 2019): mode search by local linearisation, then a Gaussian at the mode.

At mu_t, with gradient s and Gauss-Newton precision L of the log-joint (models/joint.py), one step solves the locally
linear model: mu_{t+1} = mu_t + a_t L^-1 s, a_t = 0.5 / (t + 1) (the paper's damping) or 1. After T steps
q = N(mu_T, L(mu_T)^-1). Gradients flow through the whole search.

The gradient of a step delta = L^-1 s does not need that of L's entries. As s - L delta = 0 for all parameters,

    d delta = L^-1 (ds - dL delta) = L^-1 d(s - L delta) with delta detached,

and s - L delta takes two directional derivatives. So L is formed and factorised without a graph; only the last
linearisation, whose precision is that of q, is differentiated.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from vaerun.distributions import PrecisionNormal
from vaerun.errors import InputError
from vaerun.inference.common import check_steps
from vaerun.inference.factor import factor_and_inverse, factor_and_solve, with_implicit_gradient
from vaerun.models import Joint
from vaerun.nets.init import head

DAMPING = ("paper", "none")


def newton_step(joint: Joint, mu: Tensor) -> Tensor:
    """L^-1 s at mu [B, d], with implicit gradients for mu and the joint's parameters (see the module docstring)."""
    local = joint.linearise_detached(mu)
    factor, step = factor_and_solve(local.precision, local.gradient)
    if not torch.is_grad_enabled():
        return step
    return with_implicit_gradient(step, joint.residual(mu, step), factor)


class Laplace(nn.Module):
    """q(z | x, c) = N(mu_T, L(mu_T)^-1), where L is the posterior precision of the locally linear model.

    Arguments:
        encoder: as in Amortised; None: the search starts at the prior mean.
        latent_dim: d.
        steps: T, the number of mode-search steps (T + 1 linearisations).
        damping: `paper` (a_t = 0.5 / (t + 1)) or `none` (a_t = 1, exact after one step on a linear decoder).
    """

    def __init__(self, encoder: nn.Module | None, latent_dim: int, *, steps: int, damping: str = "paper") -> None:
        super().__init__()
        if damping not in DAMPING:
            raise InputError(f"unknown model.inference.damping '{damping}': choose one of {', '.join(DAMPING)}")
        self.encoder, self.steps, self.damping = encoder, check_steps(steps), damping
        self.mean = None if encoder is None else head(cast(Any, encoder).features, latent_dim)

    def step_size(self, t: int) -> float:
        """a_t, the damping of step t."""
        return 0.5 / (t + 1) if self.damping == "paper" else 1.0

    def forward(self, joint: Joint) -> PrecisionNormal:
        if self.encoder is None or self.mean is None:
            mu = joint.prior.mean
        else:
            mu = self.mean(self.encoder(joint.inputs, joint.c))
        # The factorisation needs full precision; trainer.precision=bf16 is for the layers only.
        with torch.autocast(mu.device.type, enabled=False):
            mu = mu.to(joint.x.dtype)
            for t in range(self.steps):
                mu = mu + self.step_size(t) * newton_step(joint, mu)
            return PrecisionNormal(mu, *factor_and_inverse(joint.linearise(mu).precision))
