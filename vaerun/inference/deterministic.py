"""The encoder of a plain autoencoder: z = e(x), no distribution."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from vaerun.distributions import Delta
from vaerun.errors import InputError
from vaerun.models import Joint
from vaerun.nets.init import head


class Deterministic(nn.Module):
    """z = e(x, c).

    Arguments:
        encoder: as in Amortised.
        latent_dim: d.
    """

    has_density = False  # p(x) is undefined: there is nothing to sample from and no importance weight

    def __init__(self, encoder: nn.Module | None, latent_dim: int) -> None:
        super().__init__()
        if encoder is None:
            raise InputError("model.encoder must be set: an autoencoder needs an encoder")
        self.encoder = encoder
        self.value = head(cast(Any, encoder).features, latent_dim)

    def forward(self, joint: Joint) -> Delta:
        return Delta(self.value(self.encoder(joint.inputs, joint.c)))
