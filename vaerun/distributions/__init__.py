"""Distributions over the latent variable, and the KL rules between them (layer L1)."""

from vaerun.deprecation import module_aliases
from vaerun.distributions.autoregressive import AutoregressiveFlow
from vaerun.distributions.base import LatentDistribution
from vaerun.distributions.delta import NO_DENSITY, Delta
from vaerun.distributions.detached import detached_module
from vaerun.distributions.normal import (
    DiagonalNormal,
    HouseholderNormal,
    PrecisionNormal,
    StandardNormal,
    kl_by_dimension,
)
from vaerun.distributions.recurrent import Recurrence, RecurrentNormal

__all__ = [
    "NO_DENSITY",
    "AutoregressiveFlow",
    "Delta",
    "DiagonalNormal",
    "HouseholderNormal",
    "LatentDistribution",
    "PrecisionNormal",
    "Recurrence",
    "RecurrentNormal",
    "StandardNormal",
    "detached_module",
    "kl_by_dimension",
]

__getattr__ = module_aliases(__name__, {"Point": "Delta", "held_module": "detached_module"})
