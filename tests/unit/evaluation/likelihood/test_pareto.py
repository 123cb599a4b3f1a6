"""How far importance sampling can be trusted: k-hat against known tails and spelled out, the effective sample size."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import genpareto
from support.models.members import TRANSFORMS, Posterior, make_model
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.distributions import StandardNormal
from vaerun.errors import InputError
from vaerun.evaluation import importance_sampling
from vaerun.evaluation.likelihood.importance import importance_statistics, unreliable_share
from vaerun.evaluation.likelihood.pareto import keep_largest, pareto_k, tail_length
from vaerun.inference import Laplace
from vaerun.models import LatentModel


def k_of(log_weights: Tensor) -> Tensor:
    """k-hat [B] of all log-weights [K, B]."""
    samples = len(log_weights)
    return pareto_k(torch.topk(log_weights, tail_length(samples) + 1, dim=0).values, samples)


def spelled_out(x: np.ndarray) -> float:
    """Zhang & Stephens (2009), section 2, with k = -k of theirs; x: exceedances in ascending order."""
    n, m = len(x), 30 + int(len(x) ** 0.5)
    b = [1 / x[-1] + (1 - math.sqrt(m / (j - 0.5))) / (3 * x[int(n / 4 + 0.5) - 1]) for j in range(1, m + 1)]
    k = [np.mean(np.log(1 - value * x)) for value in b]
    profile = np.array([n * (math.log(-u / v) - v - 1) for u, v in zip(b, k, strict=True)])
    weight = np.exp(profile - profile.max())
    result = np.mean(np.log(1 - np.dot(weight, b) / weight.sum() * x))
    return (n * result + 10 * 0.5) / (n + 10)


def test_the_tail_is_as_long_as_it_should_be():
    # min(K / 5, 3 sqrt(K)) rounded up: the two meet at K = 225.
    lengths = {1: 0, 20: 0, 21: 5, 25: 5, 100: 20, 225: 45, 400: 60, 5000: 213, 10_000: 300}
    assert {samples: tail_length(samples) for samples in lengths} == lengths


@pytest.mark.parametrize("k", [-0.5, -0.2, 0.0, 0.3, 0.5, 0.7, 0.9, 1.2])
def test_a_known_tail_is_found(k):
    samples, sets = 5000, 400
    tail = tail_length(samples)
    x = genpareto.rvs(k, scale=3.0, size=(tail, sets), random_state=np.random.default_rng(1))
    result = pareto_k(torch.from_numpy(np.vstack([np.full(sets, 2.0), 2.0 + x])).log(), samples)
    expected = (tail * k + 5) / (tail + 10)
    error = result.std() / sets**0.5
    # The estimator's own bias is of order 1 / M (Zhang & Stephens 2009, table 1).
    assert abs(result.mean() - expected) < 5 * error + 2 / tail
    assert result.std() == pytest.approx(abs(1 + k) / tail**0.5 if k > -0.4 else result.std(), rel=0.25)


@pytest.mark.parametrize("samples", [21, 25, 100, 5000])
@pytest.mark.parametrize("spread", [0.01, 0.5, 2.0, 20.0])
def test_the_estimator_is_spelled_out(samples, spread):
    log_weights = spread * torch.randn(samples, 6)
    result = k_of(log_weights)
    for column, value in zip(log_weights.T, result, strict=True):
        w = np.sort(np.exp(column.numpy()))[-tail_length(samples) - 1 :]
        assert float(value) == pytest.approx(spelled_out(w[1:] - w[0]), rel=1e-6, abs=1e-8)


def gaussian_weights(s2: float, d: int = 2, samples: int = 5000, sets: int = 100) -> Tensor:
    """log-weights [K, sets] of the proposal N(0, s2 I) for the target N(0, I).

    w is proportional to exp(|z|^2 (1/s2 - 1) / 2), z ~ N(0, s2 I). In two dimensions E = |z|^2 / (2 s2) ~ Exp(1), so
    w = exp((1 - s2) E) and for s2 < 1 P(w > t) = t^(-1 / (1 - s2)): Pareto with k = 1 - s2, in any d up to powers of
    log t. For s2 > 1 weights are bounded, P(w > 1 - e) ~ e^(d / 2) near their bound: k = -2 / d.
    """
    z = s2**0.5 * torch.randn(samples, sets, d)
    return 0.5 * (1 / s2 - 1) * z.square().sum(-1)


@pytest.mark.parametrize(("s2", "k"), [(0.1, 0.9), (0.2, 0.8), (0.5, 0.5), (0.8, 0.2), (1.1, -1.0), (3.0, -1.0)])
def test_gaussian_proposals_have_the_tail_that_theory_says(s2, k):
    result = k_of(gaussian_weights(s2))
    tail = tail_length(5000)
    # Of a bounded density the observed end lies M^-1 inside, and the estimator is only roughly right below -1/2.
    margin = 5 * result.std() / 10 + 2 / tail if k > -0.5 else 0.15
    assert abs(result.mean() - (tail * k + 5) / (tail + 10)) < margin


def test_a_narrow_proposal_is_told_from_a_wide_one():
    # In 10 dimensions, K = 2000: of the narrow one nearly all images are above the limit, of the wide one none.
    narrow, wide = (k_of(gaussian_weights(s2, 10, 2000)) for s2 in (0.1, 2.0))
    assert unreliable_share(narrow) > 0.95
    assert unreliable_share(wide) == 0.0
    assert wide.max() < 0.5


def test_neither_scale_nor_order_nor_company_matters():
    log_weights = 2 * torch.randn(500, 9)
    result = k_of(log_weights)
    for shift in (-5000.0, 700.0, torch.linspace(-900, 900, 9)):
        torch.testing.assert_close(k_of(log_weights + shift), result, atol=1e-7, rtol=0)
    largest = torch.topk(log_weights, tail_length(500) + 1, dim=0).values
    assert torch.equal(pareto_k(largest[torch.randperm(len(largest))], 500), result)
    torch.testing.assert_close(pareto_k(largest[:, 4:5], 500), result[4:5], atol=1e-12, rtol=0)


def test_weights_beyond_all_bounds_have_a_finite_k():
    # With log w ~ N(0, s^2) and s large, log x = log w, and k is the mean of log(x / x_q) and some.
    for spread in (1e3, 1e5):
        result = k_of(spread * torch.randn(5000, 20))
        assert result.isfinite().all()
        assert (result > spread / 10).all()
    some = torch.full((5000, 1), -math.inf)  # a likelihood of zero at nearly all samples
    for positive, least in ((300, -1.0), (100, -1.0), (5, -1.0), (4, math.inf), (1, math.inf)):
        some[:positive], some[positive:] = torch.randn(positive, 1), -math.inf
        assert k_of(some) >= least
        assert k_of(some).isfinite().all() == (least < 0)
    alone = torch.zeros(100, 1)
    alone[7] = 1000.0
    assert k_of(alone) == math.inf


def test_what_has_no_tail():
    assert k_of(torch.full((100, 2), -1234.5)).tolist() == [-math.inf] * 2
    assert k_of(torch.full((100, 2), -math.inf)).tolist() == [-math.inf] * 2
    few = pareto_k(torch.randn(1, 3), 20)
    assert few.dtype == torch.float64
    assert few.isnan().all()
    broken = torch.randn(21, 2)
    broken[3, 0] = math.nan
    assert pareto_k(broken, 100).isnan().tolist() == [True, False]
    with pytest.raises(InputError, match="21 largest"):
        pareto_k(torch.randn(20, 2), 100)


def test_differences_of_rounding_are_none():
    largest = 1e-4 * torch.rand(21, 2)
    spread = largest.amax(0) - largest.amin(0)
    assert pareto_k(largest, 100).isfinite().all()
    assert pareto_k(largest, 100, 2e-4).tolist() == [-math.inf] * 2
    assert pareto_k(largest, 100, spread * torch.tensor([0.9, 1.1])).isinf().tolist() == [False, True]


def test_ties_and_an_exponential_tail_do_no_harm():
    # Weights on a coarse grid tie with the threshold: what is left is fitted as if it were alone (but for the grid).
    x = genpareto.rvs(0.6, size=(15, 3), random_state=np.random.default_rng(2))
    result = pareto_k(torch.from_numpy(np.vstack([np.ones((6, 3)), 1 + x])).log(), 100)
    for column, value in zip(np.sort(x, 0).T, result, strict=True):
        assert float(value) == pytest.approx(spelled_out(column), abs=0.01)
    # M = 5, x = 1..5: for j = 13 of m = 32 the grid's c is 1/5 = x_q / x_M, so b = 0 up to rounding.
    ladder = torch.arange(1.0, 7.0).log()[:, None]
    near = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0001]).log()[:, None]
    torch.testing.assert_close(pareto_k(ladder, 25), pareto_k(near, 25), atol=1e-4, rtol=0)


def test_the_largest_are_kept_over_blocks():
    log_weights = torch.randn(1200, 5)
    expected = torch.topk(log_weights, 50, dim=0).values
    for size in (1, 37, 500, 1200):
        kept = log_weights.new_empty(0, 5)
        for block in log_weights.split(size):
            kept = keep_largest(kept, block, 50)
            assert len(kept) <= 50
        assert torch.equal(kept.sort(0, descending=True).values, expected)


def test_the_share_of_unreliable_images():
    assert unreliable_share(torch.tensor([0.7, 0.71, -math.inf, 2.0])) == 0.5
    assert unreliable_share(torch.tensor([math.nan, 0.71, 0.1, 0.2, 0.3])) == 0.25
    assert math.isnan(unreliable_share(torch.tensor([math.nan])))


# -- within importance sampling ---------------------------------------------------------------------------------------


class Prescribed:
    """A joint whose log-weights log p(x | z_k) [K, B] are given, when q is its prior."""

    def __init__(self, log_weights: Tensor) -> None:
        self.log_weights = log_weights
        self.x = torch.zeros(log_weights.shape[1], 1, 1, 1)
        self.prior = StandardNormal(torch.zeros(log_weights.shape[1], 1))

    def noise(self, stream: str, k: int) -> Tensor:
        start = k * int(stream.removeprefix("importance/"))
        rows = torch.arange(start, start + k, dtype=torch.float64) / 1e4  # so small that densities keep their digits
        return rows[:, None, None].expand(k, len(self.x), 1)

    def log_likelihood(self, z: Tensor) -> Tensor:
        return self.log_weights[(z[:, 0, 0] * 1e4).round().long()]

    def infer(self, joint: Prescribed) -> StandardNormal:
        return self.prior


@pytest.mark.parametrize("samples", [100, 500, 1300])
def test_weights_are_counted_and_their_tail_is_known(samples):
    # Images with: equal weights; one that dominates; a tenth of them equal, the others zero; a tail of k = 0.9.
    equal, one, some = torch.full((samples,), -3e3), torch.full((samples,), -3e3), torch.full((samples,), -math.inf)
    one[samples // 2], some[: samples // 10] = -2e3, 5e3
    tail = 0.9 * torch.distributions.Exponential(torch.tensor(1.0)).sample((samples,)) - 800
    joint = Prescribed(torch.stack([equal, one, some, tail], 1))
    result = importance_statistics(joint, joint.infer(joint), samples)
    expected = torch.tensor([samples, 1.0, samples // 10, torch.softmax(tail, 0).square().sum().reciprocal()])
    torch.testing.assert_close(result["effective_sample_size"], expected, atol=0, rtol=1e-9)
    mass = torch.tensor([-3e3, -2e3 - math.log(samples), 5e3 - math.log(10), torch.logsumexp(tail, 0)])
    mass[3] -= math.log(samples)
    torch.testing.assert_close(result["log_likelihood"], mass, atol=1e-9, rtol=0)
    k = result["pareto_k"]
    assert k[0] == -math.inf
    assert k[1] == math.inf
    assert abs(k[3] - 0.9) < 5 * 1.9 / tail_length(samples) ** 0.5


def make_split(n: int, transform: str = "plain") -> Split:
    """Grey images [n, 1, 3, 4]."""
    images = torch.randint(0, 256, (n, 1, 3, 4), generator=torch.Generator().manual_seed(4))
    return Split("test", images.to(torch.uint8), None, 0, TRANSFORMS[transform], False)


def isotropic(s2: float) -> LatentModel:
    """A linear-Gaussian model whose posteriors are N(m(x), v I), and whose q is N(m(x), s2 v I); d = 2."""
    model = make_model("amortised", network="linear", d=2)
    encoder = torch.nn.Flatten()
    encoder.forward = lambda x, c=None: x.flatten(1)  # the pixels themselves
    model.inference.encoder = encoder
    model.inference.mean, model.inference.log_variance = torch.nn.Linear(12, 2), torch.nn.Linear(12, 2)
    with torch.no_grad():
        model.decoder.affine.weight.copy_(torch.linalg.qr(torch.randn(12, 2)).Q)
        noise = model.likelihood.log_variance.exp()
        v = 1 / (1 + 1 / noise)
        solve = v * model.decoder.affine.weight.mT / noise
        model.inference.mean.weight.copy_(solve)
        model.inference.mean.bias.copy_(-solve @ model.decoder.affine.bias)
        model.inference.log_variance.weight.zero_()
        model.inference.log_variance.bias.fill_(float((s2 * v).log()))
    return model


@pytest.mark.parametrize("samples", [2000, 5000])
def test_a_posterior_too_narrow_is_found_out(samples):
    # k = 1 - s2 exactly (gaussian_weights): 0.9 of the narrow one; the wide one's weights are bounded.
    run = partial(importance_sampling, split=make_split(40), samples=samples, seed=0)
    results = {s2: run(isotropic(s2)) for s2 in (0.1, 1.0, 2.0)}
    narrow, exact, wide = (result["pareto_k"] for result in results.values())
    assert abs(narrow.mean() - 0.9) < 5 * narrow.std() / 40**0.5 + 0.02
    assert unreliable_share(narrow) > 0.8
    assert (wide < 0.5).all()
    assert (exact == -math.inf).all()
    assert unreliable_share(wide) == unreliable_share(exact) == 0.0
    size = results[2.0]["effective_sample_size"] / samples
    # E[w]^2 / E[w^2] = (2 s2 - 1) / s2^2 for two dimensions: 3/4 at s2 = 2.
    assert abs(size.mean() - 0.75) < 5 * size.std() / 40**0.5 + 1e-3
    torch.testing.assert_close(results[1.0]["effective_sample_size"], torch.full((40,), float(samples)))


@pytest.mark.parametrize("d", [1, 3, 6])
def test_rounding_in_float32_is_no_tail(single_precision, d):
    # Without the allowance for rounding these have k-hats above 0.7.
    model = make_model(Posterior(partial(Laplace, steps=1, damping="none")), network="linear", d=d)
    for transform in ("plain", "logit"):
        split = make_split(30, transform)
        result = importance_sampling(model, split, samples=2000, seed=0)
        assert (result["pareto_k"] == -math.inf).all()
        assert (result["effective_sample_size"] > 1999.9).all()


def test_rounding_grows_with_the_pixels_even_where_the_density_is_near_one():
    # log p(x | z) near 0 of 64 pixels: a sum of terms of about a nat each, known in float32 to 6e-5.
    noise = torch.linspace(-1, 1, 100)[torch.randperm(100)]
    joint = Prescribed(torch.stack([1e-5 * noise, 1e-3 * noise], 1))
    joint.x = torch.zeros(2, 1, 8, 8, dtype=torch.float32)
    assert importance_statistics(joint, joint.infer(joint), 100)["pareto_k"].isinf().tolist() == [True, False]
