"""Inference: a joint in, a distribution q(z | x, c) out; one file each (layer L3)."""

from vaerun.inference.amortised import Amortised
from vaerun.inference.householder import Householder
from vaerun.inference.laplace import Laplace
from vaerun.inference.semi_amortised import SemiAmortised

__all__ = ["Amortised", "Householder", "Laplace", "SemiAmortised"]
