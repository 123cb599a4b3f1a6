"""The Parzen-window log-likelihood against torch's own mixture of normals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vaerun.errors import InputError, RunError
from vaerun.evaluation.likelihood import parzen
from vaerun.evaluation.likelihood.parzen import (
    VARIANCES,
    WARNING,
    choose_parzen_variance,
    is_at_edge,
    parzen_log_likelihood,
)

SHAPE = (2, 3, 2)


def pictures(n: int, seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def mixture(samples: Tensor, variance: float) -> MixtureSameFamily:
    parts = Independent(Normal(samples, torch.full_like(samples, variance**0.5)), samples.dim() - 1)
    return MixtureSameFamily(Categorical(logits=torch.zeros(len(samples))), parts)


@pytest.mark.parametrize("variance", [1e-4, 0.01, 1.0])
def test_it_is_the_density_of_a_mixture(variance):
    samples, images = pictures(7, 0), pictures(5, 1)
    result = parzen_log_likelihood(samples, images, variance)
    assert result.shape == (5,)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, mixture(samples, variance).log_prob(images), rtol=1e-12, atol=1e-9)


def test_one_sample_is_one_normal():
    sample, images = pictures(1, 2), pictures(4, 3)
    expected = Normal(sample, 0.3).log_prob(images).flatten(1).sum(1)
    torch.testing.assert_close(parzen_log_likelihood(sample, images, 0.09), expected)
    peak = parzen_log_likelihood(sample, sample, 0.09)
    assert float(peak) == pytest.approx(-6 * math.log(2 * math.pi * 0.09))


@pytest.mark.parametrize("rows", [2, parzen.IMAGE_BLOCK])
def test_the_chunk_changes_rounding_alone(rows, monkeypatch):
    samples, images = pictures(11, 4), pictures(7, 5)
    whole = parzen_log_likelihood(samples, images, 0.02)
    monkeypatch.setattr(parzen, "IMAGE_BLOCK", rows)
    for chunk in (1, 3, 13, 20, 10_000):
        torch.testing.assert_close(parzen_log_likelihood(samples, images, 0.02, chunk=chunk), whole, rtol=1e-13, atol=0)


def test_memory_is_bounded_by_the_chunk(monkeypatch):
    seen = []
    product = parzen._squared_distances

    def spy(x: Tensor, y: Tensor) -> Tensor:
        seen.append(len(x) * len(y))
        return product(x, y)

    monkeypatch.setattr(parzen, "_squared_distances", spy)
    monkeypatch.setattr(parzen, "IMAGE_BLOCK", 4)
    parzen_log_likelihood(pictures(50, 6), pictures(9, 7), 0.1, chunk=21)
    assert max(seen) <= 21
    assert sum(seen) == 50 * 9


def test_close_pairs_keep_their_distance_in_single_precision(single_precision):
    # Two clusters, far from each other and narrow: in float32 |x|^2 + |y|^2 - 2xy would lose the distances within each.
    shape = (1, 28, 28)
    base = torch.tensor([0.1, 0.9]).view(2, 1, 1, 1) + 0.05 * pictures(2, 8, shape)
    samples = base.repeat(3, 1, 1, 1) + 1e-3 * pictures(6, 9, shape)
    images = base.repeat(2, 1, 1, 1) + 1e-3 * pictures(4, 10, shape)
    assert samples.dtype == torch.float32
    result = parzen_log_likelihood(samples, images, 1e-6)
    torch.testing.assert_close(result, mixture(samples.double(), 1e-6).log_prob(images.double()), rtol=0, atol=1e-4)


def test_the_variance_that_made_the_images_is_found():
    centres = pictures(5, 11, (1, 4, 5))
    noise = torch.randn(2000, 1, 4, 5, generator=torch.Generator().manual_seed(12))
    truth = VARIANCES[18]
    images = centres.repeat(400, 1, 1, 1) + truth**0.5 * noise
    best, values = choose_parzen_variance(centres, images)
    assert best == truth
    assert list(values) == list(VARIANCES)
    assert not is_at_edge(best, values)
    for variance in VARIANCES[15:22]:
        expected = float(mixture(centres, variance).log_prob(images).mean())
        assert values[variance] == pytest.approx(expected, rel=1e-12)
    cut = [v for v in VARIANCES if v > truth]
    best, values = choose_parzen_variance(centres, images, cut)
    assert best == min(cut)
    assert is_at_edge(best, values)
    best, values = choose_parzen_variance(centres, images, [v for v in VARIANCES if v < truth])
    assert is_at_edge(best, values)


def test_the_grid_is_even_in_the_logarithm():
    logs = torch.tensor(VARIANCES).log10()
    assert logs[0] == pytest.approx(-6)
    assert logs[-1] == pytest.approx(0)
    torch.testing.assert_close(logs.diff(), torch.full((30,), 0.2))
    assert "mislead" in WARNING
    assert "\n" not in WARNING


def test_what_cannot_be_used_is_named():
    samples, images = pictures(3, 13), pictures(2, 14)
    for variance in (0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="variance"):
            parzen_log_likelihood(samples, images, variance)
        with pytest.raises(InputError, match="variance"):
            choose_parzen_variance(samples, images, [0.1, variance])
    with pytest.raises(InputError, match="samples"):
        parzen_log_likelihood(samples[:0], images, 0.1)
    with pytest.raises(InputError, match="one shape"):
        parzen_log_likelihood(samples, pictures(2, 14, (1, 3, 4)), 0.1)
    with pytest.raises(InputError, match="chunk"):
        parzen_log_likelihood(samples, images, 0.1, chunk=0)
    with pytest.raises(InputError, match="at least one candidate"):
        choose_parzen_variance(samples, images, [])
    with pytest.raises(InputError, match="validation images"):
        choose_parzen_variance(samples, images[:0])
    for bad in (math.nan, math.inf):
        samples[1, 0, 0, 0] = bad
        with pytest.raises(RunError, match="finite"):
            parzen_log_likelihood(samples, images, 0.1)
    assert parzen_log_likelihood(images, images[:0], 0.1).shape == (0,)
