"""The final evaluation of a likelihood model on test."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaerun.data.dataset import ImageData
from vaerun.evaluation import importance_sampling
from vaerun.models import LatentModel, ppca
from vaerun.training.log import Progression
from vaerun.training.signals import Stop


def evaluate_test(
    model: LatentModel, data: ImageData, *, samples: int, seed: int, images: int, chunk: int | None, stop: Stop
) -> dict[str, Tensor]:
    """Per-image values [N] (float64, nats) by name, of the first N = `images` test images.

    log_likelihood (K = samples), elbo, kl, reconstruction; log_likelihood_exact where the model has it;
    bits_per_dimension (bits) where the data was dequantised.
    """
    with Progression(f"log-likelihood of test, K={samples}", images) as progression:
        values = importance_sampling(
            model,
            data.test,
            samples=samples,
            seed=seed,
            images=images,
            chunk=chunk,
            stop=stop,
            progress=progression.advance,
        )
    if ppca.is_linear_gaussian(model):
        batches = data.test.batches(500, images)
        exact = [ppca.exact_log_likelihood(model, b.x) + b.log_det.cpu() for b in batches]
        values["log_likelihood_exact"] = torch.cat(exact)
    if data.transform.dequantize:
        values["bits_per_dimension"] = 8 - values["log_likelihood"] / (data.dimensions * math.log(2))
    return values
