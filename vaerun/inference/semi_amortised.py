"""Semi-amortised inference: the encoder's output is refined by T gradient steps per image (Kim et al. 2018, section 3).

lambda_0 = encoder(x), lambda_{k+1} = lambda_k + a grad_lambda ELBO(lambda_k), lambda = (mean, log-variance). The
gradient is that of the sum over the batch, so that an image's step does not shrink with the batch size; mean and
log-variance are each clipped to norm 5 per image. In training, gradients flow through the T steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from vaerun.distributions import DiagonalNormal
from vaerun.errors import InputError
from vaerun.inference.amortised import Amortised
from vaerun.inference.common import check_steps
from vaerun.models import Joint

MAX_NORM = 5.0


def clip_per_image(gradient: Tensor, max_norm: float = MAX_NORM) -> Tensor:
    """Rows of [B, d], rescaled to norm `max_norm` if longer."""
    norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    return gradient * (max_norm / norm.clamp(min=max_norm))


class SemiAmortised(nn.Module):
    """q(z | x, c) = N(m_T, diag v_T) after T ascent steps on the ELBO of each image; T = 0 is the amortised Gaussian.

    Arguments:
        encoder, latent_dim: as in Amortised.
        steps: T.
        step_size: a, the same for mean and log-variance.
    """

    def __init__(self, encoder: nn.Module | None, latent_dim: int, *, steps: int, step_size: float) -> None:
        super().__init__()
        self.base = Amortised(encoder, latent_dim)
        self.steps = check_steps(steps)
        if not isinstance(step_size, int | float) or not 0 < step_size < math.inf:
            raise InputError(f"model.inference.step_size must be a number above 0, got {step_size}")
        self.step_size = step_size

    def forward(self, joint: Joint) -> DiagonalNormal:
        train = torch.is_grad_enabled()
        _, mean, log_variance = self.base.parameters_of(joint)
        with torch.enable_grad():  # evaluation runs under no_grad, but the refinement needs gradients
            mean, log_variance = (v if v.requires_grad else v.requires_grad_() for v in (mean, log_variance))
            for step in range(self.steps):
                elbo = self.elbo(joint, DiagonalNormal(mean, log_variance), step)
                gradients = torch.autograd.grad(elbo.sum(), (mean, log_variance), create_graph=train)
                mean, log_variance = (
                    value + self.step_size * clip_per_image(gradient)
                    for value, gradient in zip((mean, log_variance), gradients, strict=True)
                )
                if not train:
                    mean, log_variance = mean.detach().requires_grad_(), log_variance.detach().requires_grad_()
        q = DiagonalNormal(mean, log_variance)
        return q if train else q.detach()

    @staticmethod
    def elbo(joint: Joint, q: DiagonalNormal, step: int) -> Tensor:
        """One-sample ELBO with analytic KL, [B] nats; each step has its own noise stream."""
        z, _ = q.rsample_with_log_prob((1,), noise=joint.noise(f"refinement/{step}", 1))
        return joint.log_likelihood(z)[0] - kl_divergence(q, joint.prior)
