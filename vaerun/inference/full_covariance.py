"""Amortised inference with a full covariance: an encoder outputs the mean and a Cholesky factor of the precision.

The precision is C C' with C = (I + l) diag(v)^(-1/2), l strictly lower triangular: in units of the diagonal, so that
sharp and flat posteriors learn at the same rate. Training starts from l = 0, the diagonal Gaussian N(m, diag v).
Kingma & Welling (2019, section 2.5.1) parameterise a factor of the covariance instead, which gives the same family.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vaerun.distributions import PrecisionNormal
from vaerun.inference.amortised import Amortised
from vaerun.models import Joint
from vaerun.nets.init import head


class FullCovariance(nn.Module):
    """q(z | x, c) = N(m(x, c), (C C')^-1), C(x, c) lower triangular.

    Arguments:
        encoder, latent_dim: as in Amortised.
    """

    def __init__(self, encoder: nn.Module | None, latent_dim: int) -> None:
        super().__init__()
        self.base = Amortised(encoder, latent_dim)
        entries = latent_dim * (latent_dim - 1) // 2
        self.lower: nn.Linear | None = None
        if entries:
            self.lower = head(self.base.mean.in_features, entries)
            nn.init.zeros_(self.lower.weight)  # starts as the diagonal Gaussian

    def forward(self, joint: Joint) -> PrecisionNormal:
        h, mean, log_variance = self.base.parameters_of(joint)
        # The solves need full precision; trainer.precision=bf16 is for the layers only.
        mean, diagonal = mean.to(joint.x.dtype), torch.exp(-0.5 * log_variance.to(joint.x.dtype))
        factor = torch.diag_embed(torch.ones_like(mean))
        if self.lower is not None:
            factor = factor + self._below(self.lower(h).to(joint.x.dtype), mean.shape[-1])
        return PrecisionNormal(mean, factor * diagonal.unsqueeze(-2))

    @staticmethod
    def _below(entries: Tensor, d: int) -> Tensor:
        """[B, d (d - 1) / 2] -> [B, d, d], filled row by row below the diagonal."""
        rows, columns = torch.tril_indices(d, d, -1, device=entries.device)
        out = entries.new_zeros(len(entries), d, d)
        out[:, rows, columns] = entries
        return out
