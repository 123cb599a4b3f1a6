"""Distributions over the latent variable, and the KL rules between them (layer L1)."""

from vaerun.distributions.base import LatentDistribution
from vaerun.distributions.held import held_module
from vaerun.distributions.normal import DiagonalNormal, HouseholderNormal, PrecisionNormal, StandardNormal

__all__ = [
    "DiagonalNormal",
    "HouseholderNormal",
    "LatentDistribution",
    "PrecisionNormal",
    "StandardNormal",
    "held_module",
]
