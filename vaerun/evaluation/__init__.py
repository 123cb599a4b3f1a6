"""Evaluation of trained models: likelihood, latent space, samples and pictures (layer L6)."""

import sys

from vaerun.deprecation import MovedModules
from vaerun.evaluation.adaptive.marginal import MarginalLikelihood, marginal_likelihood
from vaerun.evaluation.likelihood.importance import importance_sampling, log_likelihood
from vaerun.evaluation.likelihood.validation import Validator

__all__ = ["MarginalLikelihood", "Validator", "importance_sampling", "log_likelihood", "marginal_likelihood"]

_MOVED = {
    "likelihood": ("annealed", "gaps", "gradient_noise", "hmc", "importance", "pareto", "parzen", "validation"),
    "latent": ("probe", "traversals"),
    "samples": ("classifier", "feature_pooling", "inception", "sample_quality", "sample_validation"),
    "plots": ("charts", "pictures"),
}
sys.meta_path.append(
    MovedModules(
        {f"{__name__}.{old}": f"{__name__}.{package}.{old}" for package, names in _MOVED.items() for old in names}
    )
)
