"""log p(x, z | c) as a function of z, with the data bound once, and its local linearisation.

Laplace inference linearises the decoder at mu: with J = d eta / dz [D, d], the gradient of the log-likelihood is J'r
and its Gauss-Newton curvature J'FJ (r, F: likelihoods.py). There are two paths:

* General path, for any decoder and likelihood: J itself, by forward mode over d unit tangents.
* Gram path, where the decoder is eta(z) = W h(z) + b and F = 1/s2 is constant: with G = W'W/s2 [H, H] and
  rho = W'(x - b)/s2 [B, H], and M = dh/dz [B, H, d] by forward mode through the trunk only,

      J'r = M'(rho - G h),    J'FJ = M'GM,

  so nothing of size D x d is formed. The same G gives the log-likelihood of many samples of one image without decoding
  them: with delta = h(z) - h_0 about a reference h_0 (the mean over the samples; without it float32 loses 0.01 nats),
  |x - eta|^2 / s2 = |x - eta_0|^2 / s2 - 2 delta'W'(x - eta_0)/s2 + delta'G delta.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from vaerun.deprecation import deprecated_alias
from vaerun.distributions import DiagonalNormal, LatentDistribution, StandardNormal, detached_module
from vaerun.models.congruence import congruence, quadratic_form
from vaerun.models.linear_map import AutodiffLinearMap, LinearMap
from vaerun.randomness import batch_normal


class Likelihood(Protocol):
    """The interface of the likelihoods (likelihoods.py)."""

    name: str
    constant_fisher: bool

    def log_prob(self, x: Tensor, eta: Tensor) -> Tensor: ...
    def score(self, x: Tensor, eta: Tensor) -> Tensor: ...
    def fisher(self, eta: Tensor) -> Tensor: ...
    def mean(self, eta: Tensor) -> Tensor: ...


class Decoder(Protocol):
    """A network z, c -> output; if it has the form `affine(trunk(z, c))`, `affine` is the last map, else None."""

    affine: nn.Linear | None

    def __call__(self, z: Tensor, c: Tensor | None) -> Tensor: ...
    def trunk(self, z: Tensor, c: Tensor | None) -> Tensor: ...


class Noise(Protocol):
    """A source of standard normal noise [k, B, d]; `stream` names its purpose."""

    def __call__(self, stream: str, k: int) -> Tensor: ...


@dataclass(frozen=True)
class Linearisation:
    """Gradient [B, d] and Gauss-Newton precision [B, d, d] of log p(x, z) at z = mu, prior included."""

    gradient: Tensor
    precision: Tensor


def _no_noise(stream: str, k: int) -> Tensor:
    raise RuntimeError("the noise of a batch is that of its images: draw it before selecting some of them")


class Joint:
    """log p(x, z | c) for a batch, as a function of z [K, B, d].

    Arguments:
        decoder, likelihood: the model's.
        prior: p(z | c), batch shape [B], with attributes `mean` and `log_variance` [B, d]; None: N(0, I).
        x: [B, C, H, W].
        c: [B, classes] or None.
        offset: [C, H, W], added to the decoder's output.
        inputs: input of encoders, [B, C, H, W]; None: x.
        noise: source of standard normal noise for inference and estimators; None: torch's global generator. An
            evaluation passes a source that depends on the image alone, so that no result depends on the batch.
    """

    def __init__(
        self,
        decoder: Decoder,
        likelihood: Likelihood,
        prior: LatentDistribution | None,
        x: Tensor,
        c: Tensor | None = None,
        *,
        latent_dim: int,
        offset: Tensor | None = None,
        inputs: Tensor | None = None,
        noise: Noise | None = None,
    ) -> None:
        self.decoder, self.likelihood, self.x, self.c = decoder, likelihood, x, c
        self.latent_dim = latent_dim
        self.prior = StandardNormal(x.new_zeros(len(x), latent_dim)) if prior is None else prior
        self.offset = x.new_zeros(x.shape[1:]) if offset is None else offset
        self.inputs = x if inputs is None else inputs
        self.noise: Noise = self._global_noise if noise is None else noise
        self._gram_cache: dict[bool, tuple[Tensor, Tensor]] = {}
        self._last_map: tuple[Tensor, bool, LinearMap] | None = None
        self._last_residual: tuple[Tensor, Tensor] | None = None

    def _global_noise(self, stream: str, k: int) -> Tensor:
        return batch_normal((k, len(self.x), self.latent_dim), 1, dtype=self.x.dtype, device=self.x.device)

    def detach(self) -> Joint:
        """The same function of z with the model's parameters detached: gradients reach z alone."""
        view = copy.copy(self)
        view.decoder = cast(Decoder, detached_module(cast(nn.Module, self.decoder)))
        view.likelihood = cast(Any, detached_module(cast(nn.Module, self.likelihood)))
        view.prior = self.prior.detach()
        view._gram_cache, view._last_map, view._last_residual = {}, None, None
        return view

    held = deprecated_alias(detach, "Joint.held", "Joint.detach")

    def select(self, rows: Tensor) -> Joint:
        """The same function for some images of the batch: rows [M], in any order, repeats allowed.

        It is for densities alone: it has neither the encoders' inputs nor noise.
        """
        if self.has_gram:
            self._gram()  # shared by all views
        view = copy.copy(self)
        view.x, view.inputs = self.x[rows], cast(Any, None)
        view.c = None if self.c is None else self.c[rows]
        if isinstance(self.prior, StandardNormal):
            view.prior = StandardNormal(self.prior.mean[rows])
        else:
            prior = cast(DiagonalNormal, self.prior)
            view.prior = DiagonalNormal(prior.mean[rows], prior.log_variance[rows])
        view.noise = _no_noise
        graph = torch.is_grad_enabled()
        view._gram_cache = {k: (gram, rho[rows]) for k, (gram, rho) in self._gram_cache.items() if k == graph}
        view._last_map = view._last_residual = None
        return view

    # -- densities ----------------------------------------------------------------------------------------------

    def decode(self, z: Tensor) -> Tensor:
        """The likelihood's natural parameter: [..., B, d] -> [..., B, C, H, W]."""
        return self.decoder(z, self.c) + self.offset

    def log_likelihood(self, z: Tensor) -> Tensor:
        """log p(x | z, c): [K, B, d] -> [K, B] nats per image."""
        if self._gram_is_cheaper(z):
            return self._gram_log_likelihood(z)
        return self.likelihood.log_prob(self.x, self.decode(z))

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(x, z | c): [K, B, d] -> [K, B] nats per image."""
        return self.prior.log_prob(z) + self.log_likelihood(z)

    def log_ratio(self, z: Tensor, mu: Tensor) -> Tensor:
        """log p(x, z | c) - log p(x, mu | c) of nearby z and mu [B, d]: [B] nats.

        On the Gram path neither is decoded, and nothing of the size of log p(x | z) is subtracted: with h = h(mu) and
        delta = h(z) - h the change of the log-likelihood is delta'(rho - G h) - 1/2 delta'G delta.
        """
        prior = self.prior.log_prob(z) - self.prior.log_prob(mu)
        if not self._linearises_by_gram:
            return prior + self.log_likelihood(z.unsqueeze(0))[0] - self.log_likelihood(mu.unsqueeze(0))[0]
        network = self._linear_map(mu)
        delta = self.decoder.trunk(z, self.c) - network.value
        slope = self._gram_residual(network) - 0.5 * (delta @ self._gram()[0])
        return prior + (delta * slope).sum(-1)

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x, z | c) [K, B] nats and its gradient [K, B, d] at z [K, B, d], without a graph.

        For repeated calls: G pays off although a single one may have few samples.
        """
        gram = self.has_gram and len(z) > 2 and self.x[0].numel() > self._affine()[0].shape[1]
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            output = self.decoder.trunk(point, self.c) if gram else self.log_likelihood(point)
        with torch.no_grad():
            value, slope = (
                self._gram_likelihood(output.detach()) if gram else (output.detach(), torch.ones_like(output))
            )
            (gradient,) = torch.autograd.grad(output, point, slope)
            return self.prior.log_prob(z) + value, gradient + self._prior_gradient(z)

    # -- linearisation ------------------------------------------------------------------------------------------

    def linearise(self, mu: Tensor) -> Linearisation:
        """Gradient and Gauss-Newton precision of log p(x, z | c) at z = mu [B, d]."""
        return self._linearise(mu, self._linear_map(mu))

    def linearise_detached(self, mu: Tensor) -> Linearisation:
        """Like `linearise`, without a graph; what `residual` also needs at the same mu is computed once."""
        if self._linearises_by_gram:
            self._gram()  # in the caller's grad mode
        network = self._linear_map(mu)
        with torch.no_grad():
            return self._linearise(mu, network.detach())

    def _linearise(self, mu: Tensor, network: LinearMap) -> Linearisation:
        gradient, curvature = (self._linearise_gram if self._linearises_by_gram else self._linearise_general)(network)
        gradient = gradient + self._prior_gradient(mu)
        if isinstance(self.prior, StandardNormal):
            return Linearisation(gradient, curvature + self._identity)
        precision = torch.exp(-self.prior.log_variance)  # type: ignore[attr-defined]
        return Linearisation(gradient, curvature + torch.diag_embed(precision))

    def _prior_gradient(self, z: Tensor) -> Tensor:
        """Gradient of log p(z | c) at z [..., B, d], of the same shape."""
        if isinstance(self.prior, StandardNormal):
            return -z
        return torch.exp(-self.prior.log_variance) * (self.prior.mean - z)  # type: ignore[attr-defined]

    @cached_property
    def _identity(self) -> Tensor:
        return torch.eye(self.latent_dim, dtype=self.x.dtype, device=self.x.device)

    def _linearise_general(self, network: LinearMap) -> tuple[Tensor, Tensor]:
        if self.decoder.affine is None:
            eta, jacobian = network.value, network.jacobian()  # [B, D], [B, d, D]
        else:
            trunk, (w, b) = network, self._affine()
            m = trunk.jacobian()
            eta, jacobian = trunk.value @ w.mT + b, (m.flatten(0, 1) @ w.mT).unflatten(0, m.shape[:2])
        eta = eta.unflatten(1, self.x.shape[1:])
        score = self.likelihood.score(self.x, eta).flatten(1)
        weight = self.likelihood.fisher(eta).flatten(1)
        return (jacobian @ score.unsqueeze(-1)).squeeze(-1), (jacobian * weight.unsqueeze(1)) @ jacobian.mT

    def _linearise_gram(self, trunk: LinearMap) -> tuple[Tensor, Tensor]:
        gram, _ = self._gram()
        return trunk.vjp(self._gram_residual(trunk)), congruence(trunk.jacobian().contiguous(), gram)

    def _gram_residual(self, trunk: LinearMap) -> Tensor:
        """rho - G h [B, H], the gradient of the log-likelihood with respect to h; of the last h without a graph."""
        if torch.is_grad_enabled():
            gram, rho = self._gram()
            return rho - trunk.value @ gram
        if self._last_residual is None or self._last_residual[0] is not trunk.value:
            gram, rho = self._gram()
            self._last_residual = trunk.value, rho - trunk.value @ gram
        return self._last_residual[1]

    def residual(self, mu: Tensor, step: Tensor) -> Tensor:
        """gradient - precision @ step at mu, [B, d] for mu and step [B, d].

        Uses directional derivatives, so that neither the Jacobian nor the precision is formed, in value or gradient.
        """
        network = self._linear_map(mu)
        if self._linearises_by_gram:
            gram, rho = self._gram()
            likelihood_part = network.vjp(rho - (network.value + network.jvp(step)) @ gram)
        elif self.decoder.affine is None:
            likelihood_part = network.vjp(self._pixel_residual(network.value, network.jvp(step)))
        else:
            w, b = self._affine()
            residual = self._pixel_residual(network.value @ w.mT + b, network.jvp(step) @ w.mT)
            likelihood_part = network.vjp(residual @ w)
        return likelihood_part + self._prior_gradient(mu + step)

    def _pixel_residual(self, eta: Tensor, change: Tensor) -> Tensor:
        """r - F change [B, D] for eta [B, D] and its first-order change [B, D]."""
        eta = eta.unflatten(1, self.x.shape[1:])
        return self.likelihood.score(self.x, eta).flatten(1) - self.likelihood.fisher(eta).flatten(1) * change

    def _linear_map(self, mu: Tensor) -> LinearMap:
        """h [B, H] and dh/dz at mu; eta [B, D] and d eta/dz if the decoder does not end in an affine map."""
        graph = torch.is_grad_enabled()
        if self._last_map is None or self._last_map[0] is not mu or self._last_map[1] != graph:
            linearise_trunk = getattr(self.decoder, "linearise_trunk", None)  # if the network is cheaper than autograd
            linear_map: LinearMap
            if self.decoder.affine is None:
                linear_map = AutodiffLinearMap(lambda z: self.decode(z).flatten(1), mu)
            elif linearise_trunk is None:
                linear_map = AutodiffLinearMap(lambda z: self.decoder.trunk(z, self.c), mu)
            else:
                linear_map = linearise_trunk(mu, self.c)
            self._last_map = mu, graph, linear_map
        return self._last_map[2]

    @property
    def _linearises_by_gram(self) -> bool:
        # With fewer pixels than hidden units the Jacobian itself is smaller.
        return self.has_gram and self.x[0].numel() > cast(nn.Linear, self.decoder.affine).in_features

    # -- Gram path ----------------------------------------------------------------------------------------------

    @property
    def has_gram(self) -> bool:
        """Whether the decoder ends in an affine map and the likelihood's Fisher weight is constant."""
        return self.decoder.affine is not None and self.likelihood.constant_fisher

    def _affine(self) -> tuple[Tensor, Tensor]:
        """W [D, H] and b [D], including the offset."""
        assert self.decoder.affine is not None
        return self.decoder.affine.weight, self.decoder.affine.bias + self.offset.flatten()

    def _gram(self) -> tuple[Tensor, Tensor]:
        """G = W'W/s2 [H, H] and rho = W'(x - b)/s2 [B, H], computed once per joint."""
        graph = torch.is_grad_enabled()  # a value without a graph must not be reused if a graph is needed
        if not graph and True in self._gram_cache:
            gram, rho = self._gram_cache[True]
            return gram.detach(), rho.detach()
        if graph not in self._gram_cache:
            w, b = self._affine()
            precision = torch.exp(-self.likelihood.log_variance)  # type: ignore[attr-defined]
            self._gram_cache[graph] = ((w.mT @ w) * precision, ((self.x.flatten(1) - b) @ w) * precision)
        return self._gram_cache[graph]

    def _gram_is_cheaper(self, z: Tensor) -> bool:
        """Whether going through G takes fewer multiplications than decoding these samples."""
        if not self.has_gram or z.dim() != 3:
            return False
        dims, width = self._affine()[0].shape
        samples = z.shape[0] * z.shape[1]
        return samples * dims * width > dims * width * (width + 2 * z.shape[1]) + samples * width * width

    def _gram_log_likelihood(self, z: Tensor) -> Tensor:
        delta, linear, square = self._gram_expansion(self.decoder.trunk(z, self.c))
        return self._from_squares(square - 2 * (delta * linear).sum(-1) + quadratic_form(delta, self._gram()[0]))

    def _gram_likelihood(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x | z, c) [K, B] and its gradient [K, B, H] with respect to h = h(z), without a graph."""
        delta, linear, square = self._gram_expansion(h)
        curved = delta @ self._gram()[0]
        return self._from_squares(square - (delta * (2 * linear - curved)).sum(-1)), linear - curved

    def _gram_expansion(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """About the mean h_0 of h [K, B, H]: delta, W'(x - eta_0)/s2 [B, H] and |x - eta_0|^2 / s2 [B]."""
        w, b = self._affine()
        centre = h.detach().mean(0)
        residual = self.x.flatten(1) - (centre @ w.mT + b)  # [B, D], in pixels: no cancellation
        precision = torch.exp(-self.likelihood.log_variance)  # type: ignore[attr-defined]
        return h - centre, (residual @ w) * precision, residual.square().sum(-1) * precision

    def _from_squares(self, scaled: Tensor) -> Tensor:
        """log p(x | z, c) from |x - eta|^2 / s2."""
        precision = torch.exp(-self.likelihood.log_variance)  # type: ignore[attr-defined]
        return self.likelihood.log_prob_from_squared_error(scaled / precision, self.x[0].numel())  # type: ignore[attr-defined]
