"""What the trainer optimises: phases, each with its parameters and its loss per image (layer L4)."""

from vaerun.objectives.adversarial import Adversarial, Information
from vaerun.objectives.base import Look, Objective, Phase
from vaerun.objectives.variational import Variational, WarmUp

__all__ = ["Adversarial", "Information", "Look", "Objective", "Phase", "Variational", "WarmUp"]
