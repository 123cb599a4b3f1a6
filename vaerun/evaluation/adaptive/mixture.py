"""Mixtures of multivariate t and normal distributions per image, as proposals of importance sampling.

A component is a mean, a Cholesky factor C of a precision C C' and degrees of freedom nu: a multivariate t (its
covariance is nu / (nu - 2) times the inverse precision), or a normal where nu is infinite. With d dimensions and
s = |C'(z - mean)|^2,

    log t(z) = log Gamma((nu + d) / 2) - log Gamma(nu / 2) - d/2 log(nu pi) + log|C| - (nu + d) / 2 log(1 + s / nu),

and t = mean + C^-T n sqrt(nu / chi2_nu) for standard normal n. All is a function of standard normal noise: n,
one number whose normal distribution function selects the component, and nu whose squares sum to chi2_nu.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vaerun.distributions.normal import LOG_2PI

DEGREES = (
    8  # of freedom of the t components: tails far heavier than a Laplace approximation's, moments up to the seventh
)
MAX_PRODUCTS = 2**23  # numbers in the largest temporary tensors (32 MiB of float32)
EXTRA_NOISE = 1 + DEGREES  # noise per sample in addition to d: the component, and chi2


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on Apple's GPUs, which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Components:
    """C components for each of B images.

    Attributes:
        mean: [B, C, d].
        cholesky: lower factors of the precisions, [B, C, d, d].
        heavy: whether a component is a t with DEGREES degrees of freedom, otherwise a normal, [C] bool.
    """

    mean: Tensor
    cholesky: Tensor
    heavy: Tensor

    def __len__(self) -> int:
        return self.mean.shape[1]

    def select(self, rows: Tensor) -> Components:
        """Those of images `rows` [M]."""
        return Components(self.mean[rows], self.cholesky[rows], self.heavy)

    def take(self, columns: slice) -> Components:
        """Components `columns` of every image."""
        return Components(self.mean[:, columns], self.cholesky[:, columns], self.heavy[columns])

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density under every component: z [B, K, d] -> [B, K, C] nats."""
        return torch.cat([self._log_prob(part) for part in z.split(self.rows_at_once, 1)], 1)

    @property
    def rows_at_once(self) -> int:
        """Samples of each image whose products with all factors are in memory at once."""
        return max(1, MAX_PRODUCTS // self.mean.numel())

    def _log_prob(self, z: Tensor) -> Tensor:
        (images, count, d), dtype = self.mean.shape, wide_dtype(z.device)
        # One product for all components. Relative to the first mean numbers are smaller, and float32 loses less.
        origin = self.mean[:, :1]
        factors = self.cholesky.permute(0, 2, 1, 3).reshape(images, d, count * d)
        shift = ((self.mean - origin).unsqueeze(2) @ self.cholesky).reshape(images, 1, count * d)
        white = torch.baddbmm(shift, z - origin, factors, beta=-1).unflatten(2, (count, d))
        distance = torch.linalg.vector_norm(white, dim=-1).to(dtype).square()
        log_det = self.cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1).to(dtype).unsqueeze(1)
        normal = -0.5 * (distance + d * LOG_2PI)
        constant = math.lgamma((DEGREES + d) / 2) - math.lgamma(DEGREES / 2) - d / 2 * math.log(DEGREES * math.pi)
        t = constant - (DEGREES + d) / 2 * torch.log1p(distance / DEGREES)
        return log_det + torch.where(self.heavy, t, normal)


@dataclass(frozen=True)
class Mixture:
    """A mixture per image.

    Attributes:
        components: its C components.
        weight: [B, C], summing to 1; 0 for a component that an image does not have.
    """

    components: Components
    weight: Tensor

    def select(self, rows: Tensor) -> Mixture:
        """Those of images `rows` [M]."""
        return Mixture(self.components.select(rows), self.weight[rows])

    def log_prob(self, z: Tensor) -> Tensor:
        """z [B, K, d] -> [B, K] nats."""
        return torch.logsumexp(self.components.log_prob(z) + self.weight.log().unsqueeze(1), -1)

    def sample(self, noise: Tensor) -> Tensor:
        """z [B, K, d] from standard normal noise [B, K, d + EXTRA_NOISE]."""
        return torch.cat([self._sample(part) for part in noise.split(self.components.rows_at_once, 1)], 1)

    def _sample(self, noise: Tensor) -> Tensor:
        count, d = self.components.mean.shape[1:]
        selector, chi2 = noise[..., d], noise[..., d + 1 :].square().sum(-1)
        # Below 1, to which the distribution function rounds in its upper tail.
        uniform = 0.5 * torch.erfc(-selector.contiguous() * math.sqrt(0.5))
        uniform = uniform.clamp(max=1 - torch.finfo(noise.dtype).eps)
        cumulative = self.weight.cumsum(-1).to(noise.dtype)
        # Divided by the last one, which rounding may leave short of 1: a component of weight 0 is never selected.
        index = torch.searchsorted(cumulative / cumulative[:, -1:], uniform, right=True).clamp(max=count - 1)
        eye = torch.eye(d, dtype=noise.dtype, device=noise.device)
        cholesky = self.components.cholesky
        inverse = torch.linalg.solve_triangular(cholesky, eye.expand_as(cholesky), upper=False)
        factors = inverse.permute(0, 2, 1, 3).reshape(len(noise), d, count * d)
        scale = torch.where(self.components.heavy[index], torch.sqrt(DEGREES / chi2), 1.0).unsqueeze(-1)
        shifted = ((noise[..., :d] * scale) @ factors).unflatten(2, (count, d)) + self.components.mean.unsqueeze(1)
        return shifted.gather(2, index[..., None, None].expand(-1, -1, 1, d)).squeeze(2)
