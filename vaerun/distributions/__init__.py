"""Distributions over the latent variable, and the KL rules between them (layer L1)."""

from vaerun.distributions.autoregressive import AutoregressiveFlow
from vaerun.distributions.base import LatentDistribution
from vaerun.distributions.held import held_module
from vaerun.distributions.normal import (
    DiagonalNormal,
    HouseholderNormal,
    PrecisionNormal,
    StandardNormal,
    kl_by_dimension,
)
from vaerun.distributions.point import NO_DENSITY, Point
from vaerun.distributions.recurrent import Recurrence, RecurrentNormal

__all__ = [
    "NO_DENSITY",
    "AutoregressiveFlow",
    "DiagonalNormal",
    "HouseholderNormal",
    "LatentDistribution",
    "Point",
    "PrecisionNormal",
    "Recurrence",
    "RecurrentNormal",
    "StandardNormal",
    "held_module",
    "kl_by_dimension",
]
