"""What the trainer optimises: phases, each with its parameters and its loss per image (layer L4)."""

from vaerun.objectives.base import Objective, Phase
from vaerun.objectives.variational import Variational, WarmUp

__all__ = ["Objective", "Phase", "Variational", "WarmUp"]
