"""Likelihoods and latent-variable models; everything else works on a model's joint density (layer L2)."""

from vaerun.models.adversarial import AdversarialModel
from vaerun.models.codes import Codes
from vaerun.models.joint import Joint, Linearisation, Noise
from vaerun.models.latent import LatentModel
from vaerun.models.likelihoods import Bernoulli, Gaussian

__all__ = ["AdversarialModel", "Bernoulli", "Codes", "Gaussian", "Joint", "LatentModel", "Linearisation", "Noise"]
