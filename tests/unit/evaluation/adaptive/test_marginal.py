"""log p(x) of a model given as a function, against exact values and quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

import vaerun
from vaerun.errors import InputError
from vaerun.evaluation.adaptive.function_density import FunctionDensity, positive_definite
from vaerun.evaluation.adaptive.marginal import marginal_likelihood

B, D = 5, 3
Function = Callable[[Tensor], Tensor]


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def linear_gaussian(
    dtype: torch.dtype = torch.float64, mean: float = 0.0, scale: float = 1.0
) -> tuple[Function, Tensor]:
    """z ~ N(mean, scale^2), x ~ N(W z, 0.3^2): the function and the exact log p(x) [B]."""
    source = torch.Generator().manual_seed(0)
    w, x = torch.randn(6, D, generator=source).to(dtype), torch.randn(B, 6, generator=source).to(dtype)
    x = x + mean * w.sum(1)

    def log_joint(z: Tensor) -> Tensor:
        return Normal(mean, scale).log_prob(z).sum(-1) + Normal(z @ w.T, 0.3).log_prob(x).sum(-1)

    covariance = scale**2 * w @ w.T + 0.09 * torch.eye(6, dtype=dtype)
    return log_joint, MultivariateNormal(mean * w.sum(1), covariance).log_prob(x).double()


def two_modes(x: Tensor, width: float = 0.03) -> Function:
    """d = 2; z_0^2 is observed, so that there is a mode on either side; the negative one is the heavier."""

    def log_joint(z: Tensor) -> Tensor:
        likelihood = Normal(z[..., 0].square() + 0.3 * z[..., 0], width).log_prob(x)
        likelihood = likelihood + Normal(z[..., 1], width).log_prob(0.4 * z[..., 0].abs() + 0.2 * x)
        return likelihood + Normal(0.0, 1.0).log_prob(z).sum(-1)

    return log_joint


def quadrature(log_joint: Function) -> Tensor:
    z0, z1 = (torch.linspace(-3, 3, n, dtype=torch.float64) for n in (2001, 1001))
    points = torch.cartesian_prod(z0, z1).unsqueeze(1).expand(-1, B, -1)
    cell = (z0[1] - z0[0]) * (z1[1] - z1[0])
    return (
        torch.logsumexp(torch.stack([torch.logsumexp(log_joint(p), 0) for p in points.split(100_000)]), 0) + cell.log()
    )


def test_linear_gaussian_is_exact(dtype: torch.dtype) -> None:
    log_joint, exact = linear_gaussian(dtype)
    result = vaerun.marginal_likelihood(log_joint, torch.zeros(B, D, dtype=dtype), samples=20_000, seed=1)
    assert result.log_likelihood.sub(exact).abs().max() < 0.01
    assert (result.log_likelihood - exact).abs().le(4 * result.standard_error + 1e-5).all()
    assert result.pareto_k.max() < 0.7
    assert result.effective_sample_size.min() > 10_000
    assert result.upper is None


def test_draws_of_another_prior_as_starts() -> None:
    log_joint, exact = linear_gaussian(mean=30.0, scale=4.0)
    draws = 30 + 4 * torch.randn(16, B, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    result = marginal_likelihood(log_joint, [draws[0], draws[1]], further_starts=draws)
    assert result.log_likelihood.sub(exact).abs().max() < 0.01
    assert result.starts.tolist() == [18] * B


def test_two_modes_against_quadrature() -> None:
    x = torch.linspace(0.5, 2.5, B, dtype=torch.float64)
    log_joint = two_modes(x)
    truth = quadrature(log_joint)
    positive = torch.stack([x.sqrt(), 0.4 * x.sqrt() + 0.2 * x], 1)
    result = marginal_likelihood(log_joint, positive, seed=1)
    assert result.log_likelihood.sub(truth).abs().max() < 0.01
    assert result.modes.tolist() == [2] * B
    # Started near the lighter mode only, half of the evidence and more is missing, and no diagnostic shows it.
    one = marginal_likelihood(log_joint, positive, further_starts=positive.unsqueeze(0), seed=1)
    assert (truth - one.log_likelihood).min() > 0.3
    assert one.pareto_k.max() < 0.7


@pytest.mark.slow
def test_bracket_contains_the_truth_and_shows_a_missed_mode() -> None:
    source = torch.Generator().manual_seed(5)
    z = torch.randn(200, 2, dtype=torch.float64, generator=source)
    width = 0.1
    mean = torch.stack([z[:, 0].square() + 0.5 * z[:, 0], z[:, 1]], 1)
    x = mean + width * torch.randn(200, 2, dtype=torch.float64, generator=source)

    def log_joint(z: Tensor) -> Tensor:
        mean = torch.stack([z[..., 0].square() + 0.5 * z[..., 0], z[..., 1]], -1)
        return Normal(mean, width).log_prob(x).sum(-1) + Normal(0.0, 1.0).log_prob(z).sum(-1)

    grid = torch.linspace(-6, 6, 6001, dtype=torch.float64)
    # z_1 is observed directly: its part of log p(x) is normal.
    observed = Normal(grid.square() + 0.5 * grid, width).log_prob(x[:, :1]) + Normal(0.0, 1.0).log_prob(grid)
    truth = torch.logsumexp(observed, 1) + (grid[1] - grid[0]).log()
    truth = truth + Normal(0.0, math.sqrt(1 + width**2)).log_prob(x[:, 1])

    result = marginal_likelihood(log_joint, z, exact=z, samples=1000)
    assert result.upper is not None
    for bound, sign in ((result.log_likelihood, 1), (result.upper, -1)):
        excess = sign * (bound - truth)
        assert excess.mean() < 4 * excess.std() / math.sqrt(200) + 1e-9
    assert (result.upper - result.log_likelihood).mean() < 0.05

    right = torch.stack([z[:, 0].abs() + 0.5, z[:, 1]], 1)
    missed = marginal_likelihood(log_joint, right, further_starts=right.unsqueeze(0), exact=z, samples=1000)
    assert missed.upper is not None
    assert (missed.upper - missed.log_likelihood).mean() > 1


def test_derivatives_and_selection_equal_direct_evaluation() -> None:
    log_joint = two_modes(torch.linspace(0.5, 2.5, B, dtype=torch.float64), width=0.5)
    filler = torch.full((B, 2), 0.7, dtype=torch.float64)
    rows = torch.tensor([4, 0, 4, 4, 2, 0])
    z = torch.randn(7, len(rows), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def single(point: Tensor, row: Tensor) -> Tensor:
        return log_joint(point.expand(1, B, 2))[0, row]

    for chunk in (1, 40, 10_000):
        target = (
            FunctionDensity(log_joint, filler, chunk=chunk)
            .select(torch.tensor([2, 4, 0, 2]))
            .select(torch.tensor([1, 2, 1, 1, 3, 2]))
        )
        expected = torch.stack([torch.stack([single(p, r) for p, r in zip(zk, rows, strict=True)]) for zk in z])
        torch.testing.assert_close(target.log_prob(z), expected)
        torch.testing.assert_close(target.log_ratio(z[0], z[1]), expected[0] - expected[1])
        local = target.linearise(z[0])
        for m, row in enumerate(rows):
            point = z[0, m]
            torch.testing.assert_close(local.gradient[m], torch.func.grad(single)(point, row))
            hessian = torch.func.hessian(single)(point, row)
            torch.testing.assert_close(local.precision[m], positive_definite(-hessian))


def test_precision_of_the_caller_is_used() -> None:
    log_joint, exact = linear_gaussian()
    z = torch.zeros(B, D, dtype=torch.float64)
    wide = 0.7 * FunctionDensity(log_joint, z, chunk=100).linearise(z).precision

    def precision(z: Tensor) -> Tensor:
        return wide.expand(len(z), B, D, D)

    target = FunctionDensity(log_joint, z, precision=precision, chunk=100).select(torch.tensor([3, 1]))
    torch.testing.assert_close(target.linearise(z[:2]).precision, wide[[3, 1]])
    result = marginal_likelihood(log_joint, z, precision=precision)
    assert result.log_likelihood.sub(exact).abs().max() < 0.02


def test_positive_definite_takes_absolute_eigenvalues() -> None:
    source = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=source))[0]
    values = torch.tensor([3.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    result = positive_definite(vectors @ values.diag() @ vectors.T)
    expected = torch.tensor([3.0, 2.0, 0.5, 4 * torch.finfo(torch.float64).eps * 3])
    torch.testing.assert_close(result, vectors @ expected.double().diag() @ vectors.T)
    assert int(torch.linalg.cholesky_ex(result)[1]) == 0
    definite = vectors @ values.abs().clamp(min=0.1).diag() @ vectors.T
    both = positive_definite(torch.stack([definite, torch.full((4, 4), math.nan)]))
    torch.testing.assert_close(both[0], definite)
    assert both[1].isnan().all()


def test_no_image_depends_on_the_others_or_the_chunk() -> None:
    log_joint, _ = linear_gaussian()
    start = torch.randn(B, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = marginal_likelihood(log_joint, start)
    for chunk in (7, 100_000):
        other = marginal_likelihood(log_joint, start, chunk=chunk)
        torch.testing.assert_close(other.log_likelihood, result.log_likelihood)

    def first_two(z: Tensor) -> Tensor:
        return log_joint(torch.cat([z, z.new_zeros(len(z), B - 2, D)], 1))[:, :2]

    torch.testing.assert_close(marginal_likelihood(first_two, start[:2]).log_likelihood, result.log_likelihood[:2])


def test_summary_says_what_each_number_is() -> None:
    log_joint, exact = linear_gaussian()
    z = torch.zeros(B, D, dtype=torch.float64)
    text = str(marginal_likelihood(log_joint, z, samples=500, exact=z))
    assert f"{float(exact.mean()):.1f}" in text
    for part in ("nats, mean of 5 images", "K = 500", "effective sample size", "Pareto k-hat above 0.7", "upper bound"):
        assert part in text
    assert "nan" not in text
    assert "k-hat undefined" in str(marginal_likelihood(log_joint, z, samples=10))


ZERO = torch.zeros(B, D)


def _normal(z: Tensor) -> Tensor:
    return -z.square().sum(-1)


@pytest.mark.parametrize(
    ("log_joint", "options", "message"),
    [
        (_normal, {"start": []}, "start is empty"),
        (_normal, {"start": torch.zeros(0, D)}, "start is empty"),
        (_normal, {"start": torch.zeros(D)}, r"start must be a floating-point tensor \[B, d\], got \[3\]"),
        (_normal, {"start": torch.zeros(B, D, dtype=torch.int64)}, "floating-point"),
        (_normal, {"start": "mean"}, "start must be a floating-point tensor"),
        (_normal, {"start": [ZERO, torch.zeros(B, D + 1)]}, "does not end in start's"),
        (_normal, {"start": [ZERO, ZERO.double()]}, "float64 on cpu, but start is"),
        (_normal, {"start": ZERO / 0}, "start has values that are not finite"),
        (_normal, {"further_starts": torch.zeros(B, D)}, r"further_starts must be a floating-point tensor \[n, B, d\]"),
        (_normal, {"exact": torch.zeros(B + 1, D)}, "exact has shape"),
        (_normal, {"samples": 0}, "samples must be an integer of at least 1"),
        (_normal, {"chunk": 0}, "chunk must be an integer of at least 1"),
        (lambda z: -z.square(), {}, r"log_joint must map z \[2, 5, 3\] to a tensor \[2, 5\], got \[2, 5, 3\]"),
        (lambda z: _normal(z).T, {}, "log_joint must map"),
        (lambda z: 0.0, {}, "got float"),
        (lambda z: z @ torch.zeros(D + 1), {}, r"log_joint fails for z \[2, 5, 3\] of torch.float32 on cpu"),
        (lambda z: _normal(z).log(), {}, "log_joint is not finite at a start of image 0"),
        (lambda z: _normal(z) + torch.rand(len(z), B), {}, "different values for the same z"),
        (lambda z: _normal(z.detach()), {}, "log_joint has no gradient"),
        (lambda z: -z.square().sum(-1).sqrt(), {}, "gradient of log_joint is not finite"),
        (_normal, {"precision": lambda z: z}, "precision must map"),
        (_normal, {"precision": lambda z: -torch.eye(D).expand(*z.shape, D)}, "precision is not positive definite"),
    ],
)
def test_errors(log_joint: Function, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        marginal_likelihood(log_joint, **{"start": ZERO, **options})  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_values_that_depend_on_other_images_are_refused():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    start = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))

    def log_joint(z: Tensor) -> Tensor:
        return network(z.flatten(0, 1)).unflatten(0, z.shape[:2])[..., 0] - z.square().sum(-1)

    with pytest.raises(InputError, match="evaluation mode"):
        marginal_likelihood(log_joint, start)
    network.eval()
    marginal_likelihood(log_joint, start, samples=30)
    with pytest.raises(InputError, match="depends on the z of the others"):
        marginal_likelihood(lambda z: -z.square().sum(-1) - z.square().sum((1, 2)).unsqueeze(1), start)
