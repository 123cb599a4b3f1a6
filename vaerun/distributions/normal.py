"""Normal distributions over z in the parameterisations that inference modules return, and KL rules between them.

Diagonal: N(m, diag v). Householder: N(Um, U diag(v) U') with U a product of reflections (Tomczak & Welling 2016).
Precision: N(m, L^-1) given a Cholesky factor of L, so that no covariance is ever formed (Park et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import register_kl

from vaerun.distributions.base import LatentDistribution, as_leaf

LOG_2PI = math.log(2 * math.pi)
MINIMUM_LENGTH = 1e-12
"""Householder vectors shorter than this do not reflect."""


class StandardNormal(LatentDistribution):
    """N(0, I), the usual prior. Shape, dtype and device are those of `like` [B, d]."""

    def __init__(self, like: Tensor) -> None:
        self.mean_ = torch.zeros_like(like)
        super().__init__(like.shape[:-1], like.shape[-1:], validate_args=False)

    def transform(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        return noise, self.log_prob(noise)

    def log_prob(self, z: Tensor) -> Tensor:
        """[..., B, d] -> [..., B] nats."""
        return -0.5 * (z.square().sum(-1) + z.shape[-1] * LOG_2PI)

    def log_prob_by_dimension(self, z: Tensor) -> Tensor:
        """[..., B, d] -> [..., B, d] nats, of which log_prob is the sum."""
        return -0.5 * (z.square() + LOG_2PI)

    def detach(self) -> StandardNormal:
        return self

    def _like(self) -> Tensor:
        return self.mean_

    @property
    def mean(self) -> Tensor:
        return self.mean_

    @property
    def log_variance(self) -> Tensor:
        return self.mean_

    @property
    def variance(self) -> Tensor:
        return torch.ones_like(self.mean_)


class DiagonalNormal(LatentDistribution):
    """N(mean, diag exp(log_variance)); both [B, d]."""

    def __init__(self, mean: Tensor, log_variance: Tensor) -> None:
        self._mean, self.log_variance = mean, log_variance
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=False)

    def transform(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        z = self._mean + torch.exp(0.5 * self.log_variance) * noise
        return z, -0.5 * (noise.square() + self.log_variance + LOG_2PI).sum(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """[..., B, d] -> [..., B] nats."""
        return self.log_prob_by_dimension(z).sum(-1)

    def log_prob_by_dimension(self, z: Tensor) -> Tensor:
        """[..., B, d] -> [..., B, d] nats, of which log_prob is the sum."""
        scaled = (z - self._mean).square() * torch.exp(-self.log_variance)
        return -0.5 * (scaled + self.log_variance + LOG_2PI)

    def detach(self) -> DiagonalNormal:
        return DiagonalNormal(self._mean.detach(), self.log_variance.detach())

    def local_parameters(self) -> tuple[list[Tensor], Callable[[], DiagonalNormal]]:
        mean, log_variance = as_leaf(self._mean), as_leaf(self.log_variance)
        return [mean, log_variance], lambda: DiagonalNormal(mean, log_variance)

    def at_mode(self, mode: Tensor, cholesky: Tensor) -> DiagonalNormal:
        """The closest to N(mode, (C C')^-1) in KL(q || .): its variances are one over the diagonal of the precision."""
        return DiagonalNormal(mode, -cholesky.square().sum(-1).log())

    def _like(self) -> Tensor:
        return self._mean

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def variance(self) -> Tensor:
        return self.log_variance.exp()

    @property
    def covariance_matrix(self) -> Tensor:
        """[B, d, d]."""
        return torch.diag_embed(self.variance)


class HouseholderNormal(LatentDistribution):
    """The image of N(mean, diag exp(log_variance)) under T Householder reflections (Tomczak & Welling 2016, eq. 9).

    z = H_T ... H_1 z_0 with H_k = I - 2 v_k v_k' / |v_k|^2. Reflections preserve volume, so log q(z) = log q_0(z_0).
    The d x d matrices are never formed.

    Arguments:
        mean, log_variance: of the base distribution, [B, d].
        vectors: v_1 ... v_T, [T, B, d]; those shorter than 1e-12 have no direction and do not reflect.
    """

    def __init__(self, mean: Tensor, log_variance: Tensor, vectors: Tensor) -> None:
        self.base = DiagonalNormal(mean, log_variance)
        self.vectors = vectors
        length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        # Divided by a clamped length, a vector would not be a unit vector, nor its reflection preserve volume.
        self._unit = torch.where(length < MINIMUM_LENGTH, 0.0, vectors / length.clamp(min=MINIMUM_LENGTH))
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=False)

    def reflect(self, z: Tensor, inverse: bool = False) -> Tensor:
        """U z, or U' z with `inverse`: [..., B, d] -> [..., B, d]."""
        for v in self._unit.flip(0) if inverse else self._unit:
            z = z - 2 * v * (z * v).sum(-1, keepdim=True)
        return z

    def transform(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        z, log_q = self.base.transform(noise)
        return self.reflect(z), log_q

    def log_prob(self, z: Tensor) -> Tensor:
        """[..., B, d] -> [..., B] nats."""
        return self.base.log_prob(self.reflect(z, inverse=True))

    def detach(self) -> HouseholderNormal:
        return HouseholderNormal(self.base.mean.detach(), self.base.log_variance.detach(), self.vectors.detach())

    def local_parameters(self) -> tuple[list[Tensor], Callable[[], HouseholderNormal]]:
        mean, log_variance = as_leaf(self.base.mean), as_leaf(self.base.log_variance)
        vectors = as_leaf(self.vectors.movedim(0, 1))
        return [mean, log_variance, vectors], lambda: HouseholderNormal(mean, log_variance, vectors.movedim(1, 0))

    def at_mode(self, mode: Tensor, cholesky: Tensor) -> HouseholderNormal:
        """As of a diagonal normal, in the coordinates of these reflections, which stay: the precision is U'C (U'C)'."""
        columns = self.reflect(cholesky.movedim(-1, 0), inverse=True)  # of U'C, [d, B, d]
        return HouseholderNormal(self.reflect(mode, inverse=True), -columns.square().sum(0).log(), self.vectors)

    def _like(self) -> Tensor:
        return self.base.mean

    @property
    def mean(self) -> Tensor:
        return self.reflect(self.base.mean)

    @property
    def covariance_matrix(self) -> Tensor:
        """[B, d, d]; forms U, so use it in plots and tests, not in training."""
        eye = torch.eye(self.event_shape[0], dtype=self.base.mean.dtype, device=self.base.mean.device)
        u = self.reflect(eye[:, None].expand(-1, *self.base.mean.shape)).permute(1, 2, 0)
        return u @ torch.diag_embed(self.base.variance) @ u.mT

    @property
    def variance(self) -> Tensor:
        return torch.diagonal(self.covariance_matrix, dim1=-2, dim2=-1)


class PrecisionNormal(LatentDistribution):
    """N(mean, L^-1), given the lower Cholesky factor of the precision L = C C'.

    Equal to MultivariateNormal(precision_matrix=L), without its second factorisation.

    Arguments:
        mean: [B, d].
        cholesky: C, [B, d, d], lower triangular with a positive diagonal.
        inverse: C^-1, [B, d, d]; None: computed on demand, and samples take a triangular solve.
    """

    def __init__(self, mean: Tensor, cholesky: Tensor, inverse: Tensor | None = None) -> None:
        self._mean, self.cholesky, self._inverse = mean, cholesky, inverse
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=False)

    @property
    def half_log_det(self) -> Tensor:
        """1/2 log|L|, [B]."""
        return torch.diagonal(self.cholesky, dim1=-2, dim2=-1).log().sum(-1)

    def transform(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        leading = noise.shape[: -len(self.batch_shape) - 1]
        columns = noise.reshape(-1, *self._mean.shape).movedim(0, -1)  # [B, d, K]: all samples at once
        if self._inverse is not None:
            solved = self._inverse.mT @ columns
        else:
            solved = torch.linalg.solve_triangular(self.cholesky.mT, columns, upper=True)
        z = self._mean + solved.movedim(-1, 0).reshape(*leading, *self._mean.shape)
        return z, self.half_log_det - 0.5 * (noise.square().sum(-1) + noise.shape[-1] * LOG_2PI)

    def log_prob(self, z: Tensor) -> Tensor:
        """[..., B, d] -> [..., B] nats."""
        white = (self.cholesky.mT @ (z - self._mean).unsqueeze(-1)).squeeze(-1)
        return self.half_log_det - 0.5 * (white.square().sum(-1) + z.shape[-1] * LOG_2PI)

    def detach(self) -> PrecisionNormal:
        inverse = None if self._inverse is None else self._inverse.detach()
        return PrecisionNormal(self._mean.detach(), self.cholesky.detach(), inverse)

    def local_parameters(self) -> tuple[list[Tensor], Callable[[], PrecisionNormal]]:
        # In units of the diagonal, so that sharp and flat posteriors take equally large steps.
        diagonal = torch.diagonal(self.cholesky, dim1=-2, dim2=-1)
        mean, log_diagonal = as_leaf(self._mean), as_leaf(diagonal.log())
        lower = as_leaf((self.cholesky / diagonal.unsqueeze(-2)).tril(-1))

        def build() -> PrecisionNormal:
            eye = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
            return PrecisionNormal(mean, (lower.tril(-1) + eye) * log_diagonal.exp().unsqueeze(-2))

        return [mean, log_diagonal, lower], build

    def at_mode(self, mode: Tensor, cholesky: Tensor) -> PrecisionNormal:
        """The Laplace approximation itself."""
        return PrecisionNormal(mode, cholesky)

    def _like(self) -> Tensor:
        return self._mean

    @property
    def inverse_cholesky(self) -> Tensor:
        """C^-1, [B, d, d]: the covariance is C^-T C^-1."""
        if self._inverse is not None:
            return self._inverse
        eye = torch.eye(self.event_shape[0], dtype=self._mean.dtype, device=self._mean.device)
        return torch.linalg.solve_triangular(self.cholesky, eye.expand_as(self.cholesky), upper=False)

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def variance(self) -> Tensor:
        return self.inverse_cholesky.square().sum(-2)

    @property
    def covariance_matrix(self) -> Tensor:
        """[B, d, d]."""
        return self.inverse_cholesky.mT @ self.inverse_cholesky


def _kl_normal(mean: Tensor, variance: Tensor, log_det: Tensor, p: StandardNormal | DiagonalNormal) -> Tensor:
    """KL(N(mean, S) || p) [B] in nats for a diagonal p; only diag S and log|S| enter.

    1/2 [ sum_i S_ii / p_i + (mean - m_p)_i^2 / p_i - 1 + log p_i ] - 1/2 log|S|
    """
    scaled = (variance + (mean - p.mean).square()) * torch.exp(-p.log_variance)
    return 0.5 * ((scaled - 1 + p.log_variance).sum(-1) - log_det)


def kl_by_dimension(q: DiagonalNormal, p: StandardNormal | DiagonalNormal) -> Tensor:
    """KL(q_j || p_j) of each dimension, [B, d] nats, for distributions with independent dimensions."""
    scaled = (q.variance + (q.mean - p.mean).square()) * torch.exp(-p.log_variance)
    return 0.5 * (scaled - 1 + p.log_variance - q.log_variance)


@register_kl(DiagonalNormal, StandardNormal)
@register_kl(DiagonalNormal, DiagonalNormal)
def _kl_diagonal(q: DiagonalNormal, p: StandardNormal | DiagonalNormal) -> Tensor:
    return kl_by_dimension(q, p).sum(-1)


@register_kl(HouseholderNormal, StandardNormal)
def _kl_householder(q: HouseholderNormal, p: StandardNormal) -> Tensor:
    # N(0, I) is invariant under reflections, so they drop out; with another prior they would not.
    return _kl_diagonal(q.base, p)


@register_kl(PrecisionNormal, StandardNormal)
@register_kl(PrecisionNormal, DiagonalNormal)
def _kl_precision(q: PrecisionNormal, p: StandardNormal | DiagonalNormal) -> Tensor:
    return _kl_normal(q.mean, q.variance, -2 * q.half_log_det, p)
