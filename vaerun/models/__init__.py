"""Likelihoods, and the latent-variable model whose joint density everything else works on (layer L2)."""

from vaerun.models.joint import Joint, Linearisation, Noise
from vaerun.models.latent import LatentModel
from vaerun.models.likelihoods import Bernoulli, Gaussian

__all__ = ["Bernoulli", "Gaussian", "Joint", "LatentModel", "Linearisation", "Noise"]
