"""Objectives of the trainer: phases, each with its parameters and a loss per image (layer L4)."""

from vaerun.deprecation import module_aliases
from vaerun.objectives.adversarial import Adversarial, InformationWeights
from vaerun.objectives.base import Diagnostics, Objective, Phase
from vaerun.objectives.variational import KLWarmup, Variational

__all__ = ["Adversarial", "Diagnostics", "InformationWeights", "KLWarmup", "Objective", "Phase", "Variational"]

__getattr__ = module_aliases(
    __name__, {"Information": "InformationWeights", "Look": "Diagnostics", "WarmUp": "KLWarmup"}
)
