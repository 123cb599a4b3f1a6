"""Amortised inference: an encoder outputs a diagonal Gaussian (Kingma & Welling 2014; Rezende et al. 2014)."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from vaerun.distributions import DiagonalNormal
from vaerun.errors import InputError
from vaerun.models import Joint
from vaerun.nets.init import head


class Amortised(nn.Module):
    """q(z | x, c) = N(m(x, c), diag v(x, c)).

    Arguments:
        encoder: network x, c -> features [B, n] with an attribute `features` (n).
        latent_dim: d.
    """

    def __init__(self, encoder: nn.Module | None, latent_dim: int) -> None:
        super().__init__()
        if encoder is None:
            raise InputError("model.encoder must be set: amortised inference needs an encoder")
        self.encoder = encoder
        features = cast(Any, encoder).features
        self.mean, self.log_variance = head(features, latent_dim), head(features, latent_dim)

    def parameters_of(self, joint: Joint) -> tuple[Tensor, Tensor, Tensor]:
        """Features [B, n], mean [B, d], log-variance [B, d]."""
        h = self.encoder(joint.inputs, joint.c)
        return h, self.mean(h), self.log_variance(h)

    def forward(self, joint: Joint) -> DiagonalNormal:
        _, mean, log_variance = self.parameters_of(joint)
        return DiagonalNormal(mean, log_variance)
