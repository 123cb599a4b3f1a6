"""Estimators: (joint, q, K) -> what to report and what to differentiate (layer L3)."""

from vaerun.estimators.base import Estimate, Estimator
from vaerun.estimators.elbo import elbo, elbo_mc

__all__ = ["Estimate", "Estimator", "elbo", "elbo_mc"]
