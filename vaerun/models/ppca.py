"""Probabilistic PCA (Tipping & Bishop 1999): the linear-Gaussian model, with exact posterior and likelihood.

p(x) = N(b, W W' + s2 I). The maximum-likelihood solution (section 3.2): b is the mean, s2 the mean of the discarded
eigenvalues of the data's covariance, and W = U (Lambda - s2 I)^(1/2) for the leading d.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from vaerun.distributions.normal import LOG_2PI
from vaerun.errors import InputError
from vaerun.models.latent import LatentModel
from vaerun.models.likelihoods import Gaussian
from vaerun.nets import MLPDecoder

MINIMUM_VARIANCE = 1e-12
"""Lower bound on s2: data that span no more than d dimensions have an unbounded likelihood."""


def is_linear_gaussian(model: LatentModel) -> bool:
    """Whether p(x) has a closed form: unconditional linear decoder, Gaussian likelihood, prior N(0, I)."""
    decoder = model.decoder
    return (
        isinstance(decoder, MLPDecoder)
        and not decoder.stack.layers
        and isinstance(model.likelihood, Gaussian)
        and not model.classes
    )


def check_closed_form(model: LatentModel, images: int) -> None:
    """Raise InputError unless the model has a closed-form fit on this number of training images."""
    _linear_gaussian_parts(model)
    dims, d = model.mean.numel(), model.latent_dim
    if d >= min(dims, images):
        raise InputError(f"model.latent_dim={d} must be below the {dims} pixels and the {images} training images")


def _linear_gaussian_parts(model: LatentModel) -> tuple[MLPDecoder, Gaussian]:
    decoder, likelihood = model.decoder, model.likelihood
    if not is_linear_gaussian(model):
        raise InputError(
            "model.fit=closed_form needs an unconditional linear decoder and a Gaussian likelihood: set network=mlp "
            "model.decoder.hidden=[] model.likelihood=gaussian model.conditional=false, or use model.fit=gradient"
        )
    assert isinstance(decoder, MLPDecoder)
    assert isinstance(likelihood, Gaussian)
    return decoder, likelihood


def fit_closed_form(model: LatentModel, batches: Iterable[Tensor]) -> None:
    """Set W, b and s2 to the maximum-likelihood solution, in place.

    Arguments:
        model: linear-Gaussian (is_linear_gaussian).
        batches: the training images as x [B, C, H, W], read once.

    Raises InputError if the model is not linear-Gaussian, or d is not below both D and the number of images.
    """
    decoder, likelihood = _linear_gaussian_parts(model)
    dims, d = model.mean.numel(), model.latent_dim
    count, first = 0, torch.zeros(dims, dtype=torch.float64, device="cpu")
    second = torch.zeros(dims, dims, dtype=torch.float64, device="cpu")
    for x in batches:
        centred = (x - model.mean).flatten(1).cpu()  # about the float32 mean first: avoids cancellation
        count += len(centred)
        first += centred.sum(0)
        second += (centred.mT @ centred).double()
    check_closed_form(model, count)
    shift = first / count
    values, vectors = torch.linalg.eigh(second / count - torch.outer(shift, shift))  # in ascending order
    noise = values[:-d].mean().clamp(min=MINIMUM_VARIANCE)
    scale = (values[-d:] - noise).clamp(min=0).sqrt()
    assert decoder.affine is not None
    with torch.no_grad():
        decoder.affine.weight.copy_((vectors[:, -d:] * scale).flip(1))
        decoder.affine.bias.copy_(shift)
        likelihood.log_variance.fill_(math.log(float(noise)))


def variance_at_minimum(model: LatentModel) -> bool:
    """Whether the closed form's s2 is at its lower bound rather than determined by the data."""
    return float(_linear_gaussian_parts(model)[1].log_variance.detach()) <= math.log(MINIMUM_VARIANCE) + 1e-3


def exact_log_likelihood(model: LatentModel, x: Tensor) -> Tensor:
    """log p(x) = log N(x; b, W W' + s2 I): x [B, C, H, W] -> [B] nats (float64), by d x d identities.

    |C| = s2^D |I + W'W/s2| and C^-1 = (I - W (I + W'W/s2)^-1 W'/s2) / s2.
    """
    decoder, likelihood = _linear_gaussian_parts(model)
    assert decoder.affine is not None
    w = decoder.affine.weight.detach().cpu().double()
    b = (decoder.affine.bias.detach() + model.offset.flatten()).cpu().double()
    s2 = likelihood.log_variance.detach().cpu().double().exp()
    r = x.flatten(1).cpu().double() - b
    inner = torch.eye(w.shape[1], dtype=torch.float64, device="cpu") + w.mT @ w / s2
    factor = torch.linalg.cholesky(inner)
    projected = torch.linalg.solve_triangular(factor, (r @ w / s2).mT, upper=False).mT
    distance = r.square().sum(1) / s2 - projected.square().sum(1)
    log_det = 2 * factor.diagonal().log().sum()
    return -0.5 * (distance + r.shape[1] * (LOG_2PI + s2.log()) + log_det)
