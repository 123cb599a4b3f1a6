"""Textbook implementations of vaerun's algorithms, written with care but without further optimisation."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from vaerun.distributions import LatentDistribution
from vaerun.inference import Laplace
from vaerun.models import Bernoulli, Gaussian, Joint, LatentModel
from vaerun.nets import MLPDecoder


def explicit_laplace(model: LatentModel, x: Tensor, noise: Tensor) -> Tensor:
    """-ELBO [B] of a VLAE by the explicit D x d Jacobian; x [B, C, H, W], noise [B, d].

    The Jacobian comes from ReLU masks rather than autograd, and a Cholesky factorisation with triangular solves
    replaces inverses; autograd differentiates all of it.
    """
    inference, decoder, likelihood = model.inference, model.decoder, model.likelihood
    assert isinstance(inference, Laplace)
    assert isinstance(decoder, MLPDecoder)
    assert inference.encoder is not None
    assert inference.mean is not None
    assert decoder.affine is not None
    affine, flat = decoder.affine, x.flatten(1)
    eye = torch.eye(model.latent_dim, dtype=x.dtype, device=x.device)

    def linearise(mu: Tensor) -> tuple[Tensor, Tensor]:
        h, jacobian = mu, None
        for layer in decoder.stack.layers:
            pre = layer(h)
            mask = (pre > 0).to(pre.dtype).unsqueeze(-1)
            h = torch.relu(pre)
            jacobian = mask * (layer.weight if jacobian is None else layer.weight @ jacobian)  # [B, H, d]
        jacobian = affine.weight.expand(len(x), -1, -1) if jacobian is None else affine.weight @ jacobian  # [B, D, d]
        eta = affine(h) + model.offset.flatten()
        if isinstance(likelihood, Gaussian):
            precision = torch.exp(-likelihood.log_variance)
            residual, curvature = (flat - eta) * precision, jacobian.mT @ jacobian * precision
        else:
            p = torch.sigmoid(eta)
            residual, curvature = flat - p, (jacobian.mT * (p * (1 - p)).unsqueeze(1)) @ jacobian
        return (jacobian.mT @ residual.unsqueeze(-1)).squeeze(-1) - mu, curvature + eye

    mu = inference.mean(inference.encoder(x - model.mean))
    for t in range(inference.steps):
        gradient, curvature = linearise(mu)
        step = torch.cholesky_solve(gradient.unsqueeze(-1), torch.linalg.cholesky(curvature)).squeeze(-1)
        mu = mu + inference.step_size(t) * step
    _, curvature = linearise(mu)
    factor = torch.linalg.cholesky(curvature)
    z = mu + torch.linalg.solve_triangular(factor.mT, noise.unsqueeze(-1), upper=True).squeeze(-1)
    log_likelihood = cast(Gaussian | Bernoulli, likelihood).log_prob(x, model.decoder(z) + model.offset)
    inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    kl = 0.5 * (inverse.square().sum((-2, -1)) + mu.square().sum(-1) - model.latent_dim + log_det)
    return kl - log_likelihood


def decode_every_sample(joint: Joint, q: LatentDistribution, noise: Tensor, chunk: int) -> Tensor:
    """Importance-weighted log p(x) [B] from noise [K, B, d], decoding every sample to D pixels, `chunk` at a time."""
    log_w, likelihood, dims = [], cast(Gaussian, joint.likelihood), joint.x[0].numel()
    constant = dims * (math.log(2 * math.pi) + likelihood.log_variance)
    for part in noise.split(max(1, chunk // noise.shape[1])):
        z, log_q = q.transform(part)
        squared = (joint.x - joint.decode(z)).square().flatten(-3).sum(-1)
        log_likelihood = -0.5 * (squared / likelihood.log_variance.exp() + constant)
        log_w.append(log_likelihood + joint.prior.log_prob(z) - log_q)
    return torch.logsumexp(torch.cat(log_w).double(), 0) - math.log(len(noise))


def vae_loss(encoder: torch.nn.Module, decoder: torch.nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    """-ELBO of a VAE with unit pixel variance, averaged over the batch, up to a constant; x [B, n], noise [B, d]."""
    mean, log_variance = encoder(x).chunk(2, dim=-1)
    z = mean + torch.exp(0.5 * log_variance) * noise
    squared = 0.5 * torch.nn.functional.mse_loss(decoder(z), x, reduction="none").sum(-1)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
    return (squared + kl).mean()
