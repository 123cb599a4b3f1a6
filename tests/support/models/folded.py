"""Decoders that fold latent space, so that posteriors have a known number of separated modes, and their quadrature."""

from __future__ import annotations

import math
from functools import partial

import torch
from support.models.members import Network, make_model
from torch import Tensor, nn
from torch.nn import functional as F

from vaerun.data.dataset import Split
from vaerun.data.transforms import Transform
from vaerun.models import LatentModel
from vaerun.nets import MLPDecoder

SHAPE = (1, 3, 4)
ASYMMETRY = 0.12  # of the two sides of a fold: their modes differ by about two nats
Q_DEVIATION = 0.1
REACH, NODES = {1: 9.0, 2: 6.0}, {1: 6001, 2: 501}  # of the quadrature's grid


class Constant(nn.Module):
    """An encoder that ignores the image: q depends on the biases of its heads alone."""

    features = 1

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return x.new_zeros(len(x), 1)


def folded(
    d: int, likelihood: str = "gaussian", activation: str = "tanh", q_mean: float = 0.0, twice: bool = False
) -> LatentModel:
    """A model whose pixels depend on |z_i| far more than on the sign of z_i: 2^d modes for an image made at z.

    Arguments:
        d: latent dimension, 1 or 2.
        likelihood: gaussian or bernoulli.
        activation: tanh or relu.
        q_mean: of every latent variable of q = N(q_mean, Q_DEVIATION^2), whatever the image.
        twice: fold |z_i| about 1 as well (relu): 4^d modes.
    """
    hidden = [2 * d, 2 * d] if twice else [2 * d]
    decoder = partial(MLPDecoder, hidden=hidden, activation=activation)
    model = make_model("amortised", likelihood, Network(SHAPE, lambda *_: Constant(), decoder), d=d)
    layers, affine, eye = model.decoder.stack.layers, model.decoder.affine, torch.eye(d)
    directions = torch.linalg.qr(torch.randn(12, 2 * d, generator=torch.Generator().manual_seed(5)))[0]
    even, odd = directions.split(d, 1)
    scale = {"gaussian": 1.0, "bernoulli": 12.0}[likelihood]
    with torch.no_grad():
        for layer in layers:
            layer.bias.fill_(-0.5 if activation == "tanh" else 0.0)
        layers[0].weight.copy_(1.2 * torch.cat([eye, -eye]))
        if twice:
            layers[0].weight.copy_(torch.cat([eye, -eye]))
            layers[1].weight.copy_(torch.cat([torch.cat([eye, eye], 1), -torch.cat([eye, eye], 1)]))
            layers[1].bias.copy_(torch.cat([-torch.ones(d), torch.ones(d)]))
        affine.weight.copy_(scale * torch.cat([even + ASYMMETRY * odd, even - ASYMMETRY * odd], 1))
        affine.bias.copy_(-0.8 * scale * even.sum(1))
        if likelihood == "gaussian":
            model.likelihood.log_variance.fill_(2 * math.log(0.1))
        model.inference.mean.bias.fill_(q_mean)
        model.inference.log_variance.bias.fill_(2 * math.log(Q_DEVIATION))
    return model.eval()


def images_at(model: LatentModel, z: Tensor, seed: int = 0) -> Split:
    """Images drawn from the model at z [n, d], rounded to grey levels."""
    binary = model.likelihood.name == "bernoulli"
    torch.manual_seed(seed)
    with torch.no_grad():
        x = model.likelihood.distribution(model.decoder(z, None) + model.offset).sample()
    pixels = (x * 255).round().clamp(0, 255).to(torch.uint8)
    return Split("test", pixels, torch.arange(len(z)) % 3, 3, Transform(binarize="fixed" if binary else "none"), binary)


def quadrature(model: LatentModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x) [B] nats by the trapezoid rule over z (d = 1 or 2), and of the mass in each orthant of z [B, 2^d].

    Orthant sum_i 2^i [z_i > 0].
    """
    d, x = model.latent_dim, x.flatten(1)
    axis = torch.linspace(-REACH[d], REACH[d], NODES[d])
    z = torch.cartesian_prod(*[axis] * d).view(-1, d)
    with torch.no_grad():
        eta = (model.decoder(z, None) + model.offset).flatten(1)  # [n, D]
        if model.likelihood.name == "bernoulli":
            log_likelihood = x @ eta.mT - F.softplus(eta).sum(1)
        else:
            s2 = model.likelihood.log_variance.exp()
            squares = x.square().sum(1, keepdim=True) - 2 * x @ eta.mT + eta.square().sum(1)
            log_likelihood = -0.5 * (squares / s2 + x.shape[1] * math.log(2 * math.pi * s2))
    log_prior = -0.5 * (z.square().sum(1) + d * math.log(2 * math.pi))
    log_f = log_likelihood + log_prior + d * math.log(axis[1] - axis[0])  # [B, n]
    orthant = ((z > 0) * 2 ** torch.arange(d)).sum(1)
    masses = [torch.logsumexp(log_f[:, orthant == i], 1) for i in range(2**d)]
    return torch.logsumexp(log_f, 1), torch.stack(masses, 1)
