"""Householder flow: a full-covariance Gaussian by T reflections (Tomczak & Welling 2016, section 3).

The first vector is a linear map of the encoder's last hidden layer, each subsequent one of its predecessor:
v_1 = L_1 h(x), v_k = L_k v_{k-1}.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from vaerun.distributions import DiagonalNormal, HouseholderNormal
from vaerun.inference.amortised import Amortised
from vaerun.inference.common import check_steps
from vaerun.models import Joint
from vaerun.nets.init import head


class Householder(nn.Module):
    """q(z | x, c) = N(Um, U diag(v) U') with U = H_T ... H_1; T = 0 is the amortised Gaussian.

    Arguments:
        encoder, latent_dim: as in Amortised.
        steps: T, the number of reflections.
    """

    def __init__(self, encoder: nn.Module | None, latent_dim: int, *, steps: int) -> None:
        super().__init__()
        self.base = Amortised(encoder, latent_dim)
        widths = [self.base.mean.in_features] + [latent_dim] * check_steps(steps)
        self.vectors = nn.ModuleList(head(a, b) for a, b in pairwise(widths))

    def forward(self, joint: Joint) -> HouseholderNormal | DiagonalNormal:
        h, mean, log_variance = self.base.parameters_of(joint)
        if not self.vectors:
            return DiagonalNormal(mean, log_variance)
        vectors = []
        for layer in self.vectors:
            h = layer(h)
            vectors.append(h)
        return HouseholderNormal(mean, log_variance, torch.stack(vectors))
