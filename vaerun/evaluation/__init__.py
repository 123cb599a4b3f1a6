"""Validation, importance sampling and pictures; they know joints and distributions only (layer L5)."""

from vaerun.evaluation.likelihood.importance import importance_sampling, log_likelihood
from vaerun.evaluation.likelihood.validation import Validator

__all__ = ["Validator", "importance_sampling", "log_likelihood"]
