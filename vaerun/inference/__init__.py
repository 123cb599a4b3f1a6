"""Inference modules: each maps a joint to a distribution q(z | x, c); one file each (layer L3)."""

from vaerun.inference.amortised import Amortised
from vaerun.inference.autoregressive import InverseAutoregressive
from vaerun.inference.deterministic import Deterministic
from vaerun.inference.full_covariance import FullCovariance
from vaerun.inference.householder import Householder
from vaerun.inference.laplace import Laplace
from vaerun.inference.recurrent import Recurrent
from vaerun.inference.semi_amortised import SemiAmortised

__all__ = [
    "Amortised",
    "Deterministic",
    "FullCovariance",
    "Householder",
    "InverseAutoregressive",
    "Laplace",
    "Recurrent",
    "SemiAmortised",
]
