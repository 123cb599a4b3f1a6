"""The point mass that a plain autoencoder has in place of a posterior."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import register_kl

from vaerun.distributions.base import LatentDistribution
from vaerun.errors import InputError

NO_DENSITY = (
    "a plain autoencoder (model=ae) has no posterior, no prior and no likelihood, only its reconstruction: use "
    "estimator=reconstruction, or a model with a posterior such as model=vae"
)


class Delta(LatentDistribution):
    """A point mass at `value` [B, d]. It has no density: methods that need one raise InputError."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        super().__init__(value.shape[:-1], value.shape[-1:], validate_args=False)

    def transform(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        raise InputError(NO_DENSITY)

    def log_prob(self, z: Tensor) -> Tensor:
        raise InputError(NO_DENSITY)

    def detach(self) -> Delta:
        return Delta(self.value.detach())

    def _like(self) -> Tensor:
        return self.value

    @property
    def centre(self) -> Tensor:
        return self.value

    @property
    def mean(self) -> Tensor:
        return self.value

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.value)


@register_kl(Delta, LatentDistribution)
def _kl_delta(q: Delta, p: LatentDistribution) -> Tensor:
    raise InputError(NO_DENSITY)
