"""Every member of every family, in one place: a new one is tested by adding one entry here.

Networks are small and smooth (tanh), so that finite differences and Hessians are exact; ReLU has its own entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from vaerun.data.transforms import Transform
from vaerun.distributions import (
    DiagonalNormal,
    HouseholderNormal,
    LatentDistribution,
    PrecisionNormal,
    StandardNormal,
)
from vaerun.estimators import (
    Estimator,
    ScoreFunction,
    dreg,
    elbo,
    elbo_mc,
    iwae,
    renyi,
    stl,
    wake_sleep,
)
from vaerun.inference import Amortised, FullCovariance, Householder, InverseAutoregressive, Laplace, SemiAmortised
from vaerun.models import Bernoulli, Gaussian, LatentModel
from vaerun.nets import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from vaerun.randomness import ImageNoise


@dataclass(frozen=True)
class Posterior:
    """An inference module: its constructor and its properties."""

    make: Callable[..., nn.Module]
    encoder: bool = True  # takes an encoder
    rotated: bool = False  # closed-form KL to N(0, I) only
    closed_kl: bool = True  # False: to no prior at all


POSTERIORS = {
    "amortised": Posterior(Amortised),
    "householder0": Posterior(partial(Householder, steps=0)),
    "householder1": Posterior(partial(Householder, steps=1), rotated=True),
    "householder3": Posterior(partial(Householder, steps=3), rotated=True),
    "full": Posterior(FullCovariance),
    "iaf0": Posterior(partial(InverseAutoregressive, steps=0, hidden=[8], context=4)),
    "iaf2": Posterior(partial(InverseAutoregressive, steps=2, hidden=[8], context=4), closed_kl=False),
    "semi0": Posterior(partial(SemiAmortised, steps=0, step_size=0.1)),
    "semi2": Posterior(partial(SemiAmortised, steps=2, step_size=0.1)),
    "laplace0": Posterior(partial(Laplace, steps=0)),
    "laplace2": Posterior(partial(Laplace, steps=2)),
    "laplace2_undamped": Posterior(partial(Laplace, steps=2, damping="none")),
    "laplace2_alone": Posterior(partial(Laplace, steps=2), encoder=False),
}

LIKELIHOODS: dict[str, Callable[[], nn.Module]] = {"gaussian": partial(Gaussian, 0.3), "bernoulli": Bernoulli}

CONTEXTS = {"plain": (0, False), "label": (3, False), "label_prior": (3, True)}
"""Number of classes, and whether the prior depends on the label."""

TRANSFORMS = {
    "plain": Transform(),
    "dequantize": Transform(dequantize=True),
    "logit": Transform(dequantize=True, logit=True),
    "dynamic": Transform(binarize="dynamic"),
    "fixed": Transform(binarize="fixed"),
}


@dataclass(frozen=True)
class Network:
    """An encoder and a decoder for images of one shape."""

    shape: tuple[int, ...]
    encoder: Callable[..., nn.Module]
    decoder: Callable[..., nn.Module]


def mlp(hidden: list[int], activation: str = "tanh") -> Network:
    """Fully connected, the decoder with these hidden layers."""
    return Network(
        (1, 3, 4),
        partial(MLPEncoder, hidden=[6], activation=activation),
        partial(MLPDecoder, hidden=hidden, activation=activation),
    )


NETWORKS = {
    "linear": mlp([]),
    "mlp": mlp([7]),
    "relu": mlp([9, 8], "relu"),
    "conv": Network(
        (1, 8, 8),
        partial(ConvEncoder, channels=[2, 3], hidden=[5], activation="tanh"),
        partial(ConvDecoder, channels=[3, 2], hidden=[5], activation="tanh"),
    ),
}


@dataclass(frozen=True)
class Method:
    """An estimator: its constructor (some have state), its order as a Renyi bound (1: ELBO, 0: IWAE), properties."""

    make: Callable[[], Estimator]
    alpha: float = 1.0
    name: str = "elbo"  # of the bound, in logs
    closed_kl: bool = False  # needs KL(q || p) in closed form
    minimum_samples: int = 1  # K
    derivative: bool = False  # the surrogate is the bound itself
    unbiased: bool = True  # the expected gradient of the surrogate is that of the bound
    path: bool = True  # differentiates z as a function of noise
    kl_options: bool = False  # takes kl_weight and free_bits


ESTIMATORS = {
    "elbo": Method(lambda: elbo, closed_kl=True, derivative=True, kl_options=True),
    "elbo_mc": Method(lambda: elbo_mc, derivative=True, kl_options=True),
    "stl": Method(lambda: stl, kl_options=True),
    "score_none": Method(partial(ScoreFunction, "none"), path=False),
    "score_mean": Method(partial(ScoreFunction, "mean"), path=False),
    "score_leave_one_out": Method(partial(ScoreFunction, "leave_one_out"), path=False, minimum_samples=2),
    "iwae": Method(lambda: iwae, 0.0, "iwae", derivative=True),
    "dreg": Method(lambda: dreg, 0.0, "iwae"),
    "renyi_half": Method(lambda: partial(renyi, alpha=0.5), 0.5, "renyi", derivative=True),
    "renyi_three": Method(lambda: partial(renyi, alpha=3.0), 3.0, "renyi", derivative=True),
    "renyi_negative": Method(lambda: partial(renyi, alpha=-1.0), -1.0, "renyi_no_lower_bound", derivative=True),
    "wake_sleep": Method(lambda: wake_sleep, 0.0, "iwae", unbiased=False, path=False),
}


def make_estimator(name: str) -> Estimator:
    """An estimator whose running mean, if it has one, is fixed at -20 nats, for comparison with others."""
    estimator = ESTIMATORS[name].make()
    if isinstance(estimator, ScoreFunction):
        estimator.eval()
        if estimator.control_variate == "mean":
            estimator.weighted_sum.fill_(-2.0)
            estimator.weight.fill_(0.1)
    return estimator


def has_closed_kl(posterior: str, context: str) -> bool:
    chosen = POSTERIORS[posterior]
    return chosen.closed_kl and not (chosen.rotated and CONTEXTS[context][1])


def make_model(
    posterior: str | Posterior = "amortised",
    likelihood: str = "gaussian",
    network: str | Network = "mlp",
    context: str = "plain",
    *,
    d: int = 3,
    seed: int = 0,
    randomise: bool = True,
) -> LatentModel:
    """A model with every parameter at a generic value (randomise=False: as it is initialised)."""
    torch.manual_seed(seed)
    parts = NETWORKS[network] if isinstance(network, str) else network
    chosen = POSTERIORS[posterior] if isinstance(posterior, str) else posterior
    classes, conditional_prior = CONTEXTS[context]
    model = LatentModel(
        parts.decoder(d, parts.shape, classes),
        LIKELIHOODS[likelihood](),
        chosen.make(parts.encoder(parts.shape, classes) if chosen.encoder else None, d),
        latent_dim=d,
        mean=0.2 + 0.6 * torch.rand(parts.shape),
        classes=classes,
        conditional_prior=conditional_prior,
    )
    if randomise:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias") or name == "prior_head.weight":
                    parameter.normal_(0, 0.3)
    return model


def make_data(model: LatentModel, n: int, seed: int = 1) -> tuple[Tensor, Tensor | None]:
    """x [n, C, H, W] that the model's likelihood allows, c [n, classes] or None."""
    source = torch.Generator().manual_seed(seed)
    x = model.mean + 0.7 * torch.randn(n, *model.image_shape, generator=source)
    if isinstance(model.likelihood, Bernoulli):
        x = (x > 0.5).to(x.dtype)
    return x, torch.eye(model.classes)[torch.arange(n) % model.classes] if model.classes else None


def image_noise(model: LatentModel, rows: Sequence[int], seed: int = 3) -> ImageNoise:
    return ImageNoise(seed, rows, model.latent_dim, model.mean)


def exact_marginal(model: LatentModel, c: Tensor | None, n: int) -> MultivariateNormal:
    """p(x | c) [n] of a linear-Gaussian model, by its D x D covariance."""
    decoder, d = model.decoder, model.latent_dim
    weight, bias = decoder.affine.weight, decoder.affine.bias + model.offset.flatten()
    w, prior = weight[:, :d], model.prior(c)
    mean = bias.expand(n, -1)
    covariance = (w @ w.mT).expand(n, -1, -1)
    if c is not None:
        mean = mean + c @ weight[:, d:].mT
    if prior is not None:
        mean, covariance = mean + prior.mean @ w.mT, w @ torch.diag_embed(prior.variance) @ w.mT
    return MultivariateNormal(mean, covariance + model.likelihood.log_variance.exp() * torch.eye(len(weight)))


# -- distributions over z, each with torch's equivalent and the parameters of both ------------------------------------

Family = Callable[[int, int], tuple[LatentDistribution, MultivariateNormal, list[Tensor]]]


def _standard(b: int, d: int) -> tuple[LatentDistribution, MultivariateNormal, list[Tensor]]:
    return StandardNormal(torch.randn(b, d)), MultivariateNormal(torch.zeros(b, d), torch.eye(d).expand(b, d, d)), []


def _diagonal(b: int, d: int) -> tuple[LatentDistribution, MultivariateNormal, list[Tensor]]:
    mean, log_variance = torch.randn(b, d).requires_grad_(), (0.7 * torch.randn(b, d)).requires_grad_()
    truth = MultivariateNormal(mean, torch.diag_embed(log_variance.exp()))
    return DiagonalNormal(mean, log_variance), truth, [mean, log_variance]


def reflections(vectors: Tensor) -> Tensor:
    """U = H_T ... H_1 as matrices: [T, B, d] -> [B, d, d]."""
    eye = torch.eye(vectors.shape[-1])
    u = eye.expand(vectors.shape[1], -1, -1)
    for v in vectors:
        u = (eye - 2 * v.unsqueeze(-1) * v.unsqueeze(-2) / v.square().sum(-1)[:, None, None]) @ u
    return u


def _householder(steps: int, b: int, d: int) -> tuple[LatentDistribution, MultivariateNormal, list[Tensor]]:
    mean, log_variance = torch.randn(b, d).requires_grad_(), (0.7 * torch.randn(b, d)).requires_grad_()
    vectors = torch.randn(steps, b, d).requires_grad_()
    u = reflections(vectors)
    covariance = u @ torch.diag_embed(log_variance.exp()) @ u.mT
    truth = MultivariateNormal((u @ mean.unsqueeze(-1)).squeeze(-1), (covariance + covariance.mT) / 2)
    return HouseholderNormal(mean, log_variance, vectors), truth, [mean, log_variance, vectors]


def _precision(b: int, d: int) -> tuple[LatentDistribution, MultivariateNormal, list[Tensor]]:
    root = torch.randn(b, d, d)
    lower = torch.linalg.cholesky(root @ root.mT + 0.5 * torch.eye(d)).requires_grad_()
    mean, factor = torch.randn(b, d).requires_grad_(), lower.tril()  # gradients in the lower triangle alone
    return PrecisionNormal(mean, factor), MultivariateNormal(mean, precision_matrix=factor @ factor.mT), [mean, lower]


FAMILIES: dict[str, Family] = {
    "standard": _standard,
    "diagonal": _diagonal,
    "householder1": partial(_householder, 1),
    "householder3": partial(_householder, 3),
    "precision": _precision,
}
PRIORS = ("standard", "diagonal")
NO_KL = {("householder1", "diagonal"), ("householder3", "diagonal"), ("standard", "diagonal"), ("standard", "standard")}
"""Pairs (q, p) without a rule; a standard normal is never a posterior."""
