"""Validation, importance sampling and pictures; they know joints and distributions only (layer L5)."""

from vaerun.evaluation.importance import importance_sampling, log_likelihood
from vaerun.evaluation.validation import Validator

__all__ = ["Validator", "importance_sampling", "log_likelihood"]
