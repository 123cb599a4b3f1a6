"""Mixtures of t and normal distributions against quadrature, closed forms and torch, and their samples against both."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import MultivariateNormal

from vaerun.evaluation.adaptive.mixture import DEGREES, EXTRA_NOISE, Components, Mixture

KINDS = {"t": [True, True, True], "normal": [False, False, False], "mixed": [True, False, True]}


def make_mixture(images: int, d: int, heavy: list[bool], spread: float = 1.0, seed: int = 0) -> Mixture:
    """Means of size `spread`, precisions of various shapes, and unequal weights."""
    source = torch.Generator().manual_seed(seed)
    count = len(heavy)
    root = torch.randn(images, count, d, d, generator=source)
    precision = 0.5 * root @ root.mT + torch.eye(d)
    mean = spread * torch.randn(images, count, d, generator=source)
    weight = torch.rand(images, count, generator=source) + 0.2
    components = Components(mean, torch.linalg.cholesky(precision), torch.tensor(heavy))
    return Mixture(components, weight / weight.sum(1, keepdim=True))


def closed_form(mixture: Mixture, z: Tensor) -> Tensor:
    """Log-density under every component by torch and scipy: z [B, K, d] -> [B, K, C]."""
    components = mixture.components
    precision = components.cholesky @ components.cholesky.mT
    columns = []
    for c, heavy in enumerate(components.heavy.tolist()):
        rows = []
        for b in range(len(z)):
            mean, p = components.mean[b, c], precision[b, c]
            if heavy:
                t = stats.multivariate_t(mean.numpy(), torch.linalg.inv(p).numpy(), df=DEGREES)
                rows.append(torch.from_numpy(np.atleast_1d(t.logpdf(z[b].numpy()))))
            else:
                rows.append(MultivariateNormal(mean, precision_matrix=p).log_prob(z[b]))
        columns.append(torch.stack(rows))
    return torch.stack(columns, -1)


def sample(mixture: Mixture, count: int, seed: int = 1) -> Tensor:
    images, _, d = mixture.components.mean.shape
    noise = torch.randn(images, count, d + EXTRA_NOISE, generator=torch.Generator().manual_seed(seed))
    return mixture.sample(noise)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 2, 7])
def test_the_density_is_that_of_torch_and_scipy(kind, d):
    mixture = make_mixture(3, d, KINDS[kind], spread=3.0)
    z = 4 * torch.randn(3, 5, d)
    expected = closed_form(mixture, z)
    torch.testing.assert_close(mixture.components.log_prob(z), expected, atol=1e-9, rtol=0)
    whole = torch.logsumexp(expected + mixture.weight.log().unsqueeze(1), -1)
    torch.testing.assert_close(mixture.log_prob(z), whole, atol=1e-9, rtol=0)
    rows, columns = torch.tensor([2, 0, 2]), slice(1, 3)
    torch.testing.assert_close(mixture.select(rows).log_prob(z[rows]), whole[rows], atol=1e-9, rtol=0)
    taken = mixture.components.take(columns)
    torch.testing.assert_close(taken.log_prob(z), expected[..., columns], atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("d", "reach", "nodes"), [(1, 100.0, 10_001), (2, 30.0, 501)])
def test_the_density_integrates_to_one(kind, d, reach, nodes):
    mixture = make_mixture(2, d, KINDS[kind])
    axis = torch.linspace(-reach, reach, nodes)
    z = torch.cartesian_prod(*[axis] * d).view(1, -1, d).expand(2, -1, -1)
    mass = mixture.log_prob(z).exp().sum(1) * (axis[1] - axis[0]) ** d
    torch.testing.assert_close(mass, torch.ones(2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_density(kind):
    # In one dimension by chi-square over 40 cells whose probabilities come from scipy's distribution functions.
    mixture = make_mixture(2, 1, KINDS[kind], spread=2.0)
    n, edges = 40_000, np.linspace(-6, 6, 39)
    z = sample(mixture, n)[..., 0].numpy()
    for b in range(2):
        cdf = np.zeros_like(edges)
        for c, heavy in enumerate(KINDS[kind]):
            mean, deviation = float(mixture.components.mean[b, c]), 1 / float(mixture.components.cholesky[b, c])
            law = stats.t(DEGREES, mean, deviation) if heavy else stats.norm(mean, deviation)
            cdf += float(mixture.weight[b, c]) * law.cdf(edges)
        probability = np.diff(np.concatenate([[0.0], cdf, [1.0]]))
        counts = np.bincount(np.searchsorted(edges, z[b]), minlength=len(probability))
        large = probability * n > 10
        statistic = ((counts - probability * n) ** 2 / (probability * n))[large].sum()
        assert stats.chi2.sf(statistic, large.sum() - 1) > 1e-4
        assert large.sum() > 15


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_moments_of_the_mixture(kind):
    n, mixture = 100_000, make_mixture(2, 3, KINDS[kind], spread=2.0)
    z, weight, mean = sample(mixture, n), mixture.weight[..., None], mixture.components.mean
    factors = mixture.components.cholesky
    scale = torch.where(mixture.components.heavy, DEGREES / (DEGREES - 2), 1.0)[None, :, None, None]
    second = scale * torch.linalg.inv(factors @ factors.mT) + mean.unsqueeze(-1) * mean.unsqueeze(-2)
    expected_second = (weight.unsqueeze(-1) * second).sum(1)
    assert ((z.mean(1) - (weight * mean).sum(1)).abs() < 4 * z.std(1) / n**0.5).all()
    products = z.unsqueeze(-1) * z.unsqueeze(-2)
    assert ((products.mean(1) - expected_second).abs() < 4 * products.std(1) / n**0.5).all()


def test_a_sample_comes_from_its_component_and_never_from_one_without_weight():
    # Components far apart, so that a sample tells where it came from; those of weight 0 at either end and inside.
    count, d, n = 6, 2, 20_000
    mean = 1000.0 * torch.arange(count).view(1, count, 1).expand(1, count, d)
    heavy = torch.arange(count) < 3
    weight = torch.tensor([[0.0, 0.3, 0.0, 0.6, 0.1, 0.0]])
    mixture = Mixture(Components(mean, torch.eye(d).expand(1, count, d, d), heavy), weight)
    index = (sample(mixture, n)[0, :, 0] / 1000).round().long()
    shares = torch.bincount(index, minlength=count) / n
    assert ((shares - weight[0]).abs() <= 4 * (weight[0] * (1 - weight[0]) / n).sqrt()).all()
    for dtype in (torch.float32, torch.float64):
        single = Mixture(Components(mean.to(dtype), mixture.components.cholesky.to(dtype), heavy), weight)
        noise = torch.ones(1, 4, d + EXTRA_NOISE, dtype=dtype)
        noise[0, :, d] = torch.tensor([-40.0, -6.0, 6.0, 40.0])  # where the normal distribution function rounds to 0, 1
        assert ((single.sample(noise)[0, :, 0] / 1000).round().long() == torch.tensor([1, 1, 4, 4])).all()
    without = single.log_prob(mean[:, [0, 2, 5]])
    assert (without < -30).all()  # and its density does not count
    assert (single.log_prob(mean[:, [1, 3, 4]]) > -6).all()


def test_the_radius_of_a_t_follows_f():
    # |z|^2 / d of a multivariate t with unit precision follows F(d, nu).
    d, n = 5, 20_000
    eye = torch.eye(d).view(1, 1, d, d)
    mixture = Mixture(Components(torch.zeros(1, 1, d), eye, torch.tensor([True])), torch.ones(1, 1))
    radius = sample(mixture, n)[0].square().sum(-1) / d
    assert stats.kstest(radius.numpy(), stats.f(d, DEGREES).cdf).pvalue > 1e-4


@pytest.mark.parametrize("d", [2, 50])
def test_single_precision_agrees(d):
    mixture = make_mixture(3, d, KINDS["mixed"], spread=3.0)
    parts = mixture.components
    single = Mixture(Components(parts.mean.float(), parts.cholesky.float(), parts.heavy), mixture.weight)
    wide = Mixture(
        Components(single.components.mean.double(), single.components.cholesky.double(), parts.heavy), mixture.weight
    )
    noise = torch.randn(3, 500, d + EXTRA_NOISE, generator=torch.Generator().manual_seed(2)).float()
    z = single.sample(noise)
    assert z.dtype == torch.float32
    assert (z.double() - wide.sample(noise.double())).abs().max() < 1e-3
    density = single.log_prob(z)
    assert density.dtype == torch.float64
    error = (density - wide.log_prob(z.double())).abs()
    assert error.max() < 1e-4 * math.sqrt(d)
