"""Estimators: (joint, q, K) -> a bound to report and a surrogate to differentiate (layer L3)."""

from vaerun.deprecation import module_aliases
from vaerun.estimators.adversarial import AdversarialLoss, Minimax, NonSaturating
from vaerun.estimators.base import Estimate, Estimator, batch_coupling, estimate
from vaerun.estimators.elbo import elbo, elbo_mc, stl
from vaerun.estimators.multisample import dreg, iwae, renyi
from vaerun.estimators.reconstruction import reconstruction
from vaerun.estimators.score_function import ScoreFunction
from vaerun.estimators.wake_sleep import wake_sleep

__all__ = [
    "AdversarialLoss",
    "Estimate",
    "Estimator",
    "Minimax",
    "NonSaturating",
    "ScoreFunction",
    "batch_coupling",
    "dreg",
    "elbo",
    "elbo_mc",
    "estimate",
    "iwae",
    "reconstruction",
    "renyi",
    "stl",
    "wake_sleep",
]

__getattr__ = module_aliases(__name__, {"whole_batch": "batch_coupling"})
