"""Distances between sets of images and features, against closed forms, written-out loops and cases known beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vaerun.errors import InputError
from vaerun.evaluation.samples.sample_quality import PRDC, diversity, frechet_distance, prdc


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(n: int) -> Tensor:
    return torch.linalg.qr(normal(n, n, seed=9)).Q


def with_moments(mean: Tensor, covariance: Tensor, count: int, seed: int) -> Tensor:
    """Features [count, n] whose sample mean and unbiased sample covariance are exactly these."""
    x = normal(count, len(mean), seed=seed)
    x = x - x.mean(0)
    white = torch.linalg.qr(x).Q * math.sqrt(count - 1)
    return mean + white @ torch.linalg.cholesky(covariance).T


# --- Frechet distance ---


def test_frechet_distance_of_commuting_covariances() -> None:
    """Covariances with the same eigenvectors: |m1 - m2|^2 + sum (sqrt l1 - sqrt l2)^2."""
    turn, m1, m2 = rotation(5), normal(5, seed=1), normal(5, seed=2)
    l1, l2 = torch.tensor([4.0, 1.0, 0.25, 9.0, 2.0]), torch.tensor([1.0, 1.0, 4.0, 0.01, 3.0])
    real = with_moments(m1, turn * l1 @ turn.T, 40, seed=3)
    fake = with_moments(m2, turn * l2 @ turn.T, 23, seed=4)
    expected = float((m1 - m2).square().sum() + (l1.sqrt() - l2.sqrt()).square().sum())
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-11)
    assert frechet_distance(fake, real) == pytest.approx(expected, rel=1e-11)


def test_frechet_distance_of_covariances_that_do_not_commute() -> None:
    """For 2x2 matrices Tr (C1 C2)^(1/2) = sqrt(Tr C1 C2 + 2 sqrt(det C1 det C2)) (Cayley and Hamilton)."""
    c1, c2 = torch.tensor([[2.0, 0.9], [0.9, 1.0]]), torch.tensor([[1.0, -0.7], [-0.7, 3.0]])
    assert not torch.allclose(c1 @ c2, c2 @ c1)
    real, fake = with_moments(torch.zeros(2), c1, 9, seed=1), with_moments(torch.tensor([1.0, -2.0]), c2, 7, seed=2)
    cross = math.sqrt(float((c1 @ c2).trace()) + 2 * math.sqrt(float(c1.det() * c2.det())))
    assert frechet_distance(real, fake) == pytest.approx(5 + float(c1.trace() + c2.trace()) - 2 * cross, rel=1e-12)


def test_frechet_distance_against_a_root_of_the_product() -> None:
    from scipy.linalg import sqrtm

    real, fake = normal(50, 8, seed=1) @ normal(8, 8, seed=2), 0.3 + normal(30, 8, seed=3) @ normal(8, 8, seed=4)
    c1, c2 = torch.cov(real.T), torch.cov(fake.T)
    root = torch.as_tensor(sqrtm((c1 @ c2).numpy()).real)
    expected = (real.mean(0) - fake.mean(0)).square().sum() + (c1 + c2 - 2 * root).trace()
    assert frechet_distance(real, fake) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("count", [2, 5, 40])
def test_frechet_distance_of_a_set_to_itself_is_zero(count: int) -> None:
    """Also where there are fewer images than dimensions, and both covariances are singular."""
    x = 100 + normal(count, 20)
    assert 0 <= frechet_distance(x, x.flip(0)) < 1e-11
    shifted = frechet_distance(x, x + 0.5)
    assert shifted == pytest.approx(5.0, abs=1e-11)


def test_frechet_distance_grows_quadratically_and_ignores_rotations() -> None:
    real, fake, turn = normal(30, 6, seed=1), 1 + 2 * normal(20, 6, seed=2), rotation(6)
    d = frechet_distance(real, fake)
    assert frechet_distance(3 * real, 3 * fake) == pytest.approx(9 * d, rel=1e-12)
    assert frechet_distance(7 + real @ turn, 7 + fake @ turn) == pytest.approx(d, rel=1e-11)
    # Single precision enters only with the features themselves.
    assert frechet_distance(real.float(), fake.float()) == pytest.approx(d, rel=1e-6)


# --- precision, recall, density, coverage ---


def by_loops(real: Tensor, fake: Tensor, k: int) -> PRDC:
    """The definitions, written out."""

    def distance(a: Tensor, b: Tensor) -> float:
        return math.dist(a.tolist(), b.tolist())

    def radii(x: Tensor) -> list[float]:
        return [sorted(distance(x[i], x[j]) for j in range(len(x)) if j != i)[k - 1] for i in range(len(x))]

    real_radii, fake_radii = radii(real), radii(fake)
    balls = [[distance(f, r) <= radius for r, radius in zip(real, real_radii, strict=True)] for f in fake]
    return PRDC(
        precision=sum(any(row) for row in balls) / len(fake),
        recall=sum(any(distance(r, f) <= q for f, q in zip(fake, fake_radii, strict=True)) for r in real) / len(real),
        density=sum(sum(row) for row in balls) / (k * len(fake)),
        coverage=sum(any(row[i] for row in balls) for i in range(len(real))) / len(real),
    )


def close(a: PRDC, b: PRDC) -> None:
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-12), name


@pytest.mark.parametrize("neighbours", [1, 3, 5])
@pytest.mark.parametrize(("n", "m"), [(40, 25), (13, 31)])
def test_manifold_metrics_equal_the_loops(neighbours: int, n: int, m: int) -> None:
    real, fake = normal(n, 3, seed=1), 1.2 + 0.9 * normal(m, 3, seed=2)
    expected = by_loops(real, fake, neighbours)
    values = [expected.precision, expected.recall, expected.density, expected.coverage]
    assert len(set(values)) == 4  # so that none can stand for another
    assert all(0 < value < 1 for value in (expected.precision, expected.recall, expected.coverage))
    close(prdc(real, fake, neighbours=neighbours), expected)
    for block in (1, 57, 200):
        close(prdc(real, fake, neighbours=neighbours, block=block), expected)


def test_manifold_metrics_ignore_rotation_scale_and_offset() -> None:
    real, fake = normal(60, 6, seed=1), 0.3 + normal(50, 6, seed=2)
    expected = prdc(real, fake, neighbours=3)
    turn = rotation(6)
    close(prdc(1e4 + 5 * real @ turn, 1e4 + 5 * fake @ turn, neighbours=3), expected)


def test_copies_of_the_data() -> None:
    """Every image lies in its own ball and on the rim of the k that its nearest neighbours' distances made."""
    real = normal(50, 7)
    for turn in (torch.eye(7), rotation(7)):  # rotated, equal distances are no longer equal to the last digit
        result = prdc(real @ turn, real.flip(0) @ turn, neighbours=4)
        close(result, PRDC(precision=1.0, recall=1.0, density=(4 + 1) / 4, coverage=1.0))


def test_disjoint_clusters_share_nothing() -> None:
    close(prdc(normal(30, 4), 100 + normal(20, 4, seed=1), neighbours=3), PRDC(0.0, 0.0, 0.0, 0.0))


def test_one_of_two_modes() -> None:
    """Samples of one cluster only are all precise; they recall and cover that cluster's half, and crowd there."""
    left, right = normal(40, 2, seed=1), 100 + normal(40, 2, seed=2)
    result = prdc(torch.cat([left, right]), left, neighbours=3)
    close(result, PRDC(precision=1.0, recall=0.5, density=4 / 3, coverage=0.5))


def test_collapse_to_one_image() -> None:
    """Every sample is the same real image: balls of radius 0 recall nothing but it."""
    real = normal(40, 5)
    fake = real[7].expand(20, 5)
    result = prdc(real, fake, neighbours=3)
    distances = torch.cdist(real, real)
    holding = (distances[7] <= distances.sort(1).values[:, 3] * (1 + 1e-12)).double()  # column 0 is the image itself
    close(result, PRDC(1.0, 1 / 40, float(holding.sum()) / 3, float(holding.mean())))


def test_noise_around_the_data_is_recalled_but_not_precise() -> None:
    real, fake = 0.01 * normal(30, 2, seed=1), normal(30, 2, seed=2) + torch.tensor([5.0, 0.0])
    fake[0] = -20.0  # one outlier: its ball is large
    result = prdc(real, fake, neighbours=3)
    assert result.precision == 0
    assert result.recall == 1
    assert result.coverage == 0


def test_density_is_one_in_expectation_for_equal_distributions() -> None:
    """And coverage 1 - (N - 1)...(N - k) / ((2N - 1)...(2N - k)) (Naeem et al. 2020, eq. 9, here for M = N)."""
    k, n, repeats = 5, 100, 20
    density, coverage = [], []
    for i in range(repeats):
        result = prdc(normal(n, 3, seed=2 * i), normal(n, 3, seed=2 * i + 1), neighbours=k)
        density.append(result.density)
        coverage.append(result.coverage)
    # The k nearest of the 2N - 1 others are all real with that probability.
    missed = math.prod((n - 1 - i) / (2 * n - 1 - i) for i in range(k))
    assert sum(density) / repeats == pytest.approx(1, abs=0.03)
    assert sum(coverage) / repeats == pytest.approx(1 - missed, abs=0.01)


# --- diversity ---


def test_diversity_equals_the_loop() -> None:
    fake, real = torch.rand(13, 3, 4, 5), 0.5 * torch.rand(17, 3, 4, 5) ** 4

    def mean(x: Tensor) -> float:
        pairs = [(i, j) for i in range(len(x)) for j in range(i)]
        return sum(math.dist(x[i].flatten().tolist(), x[j].flatten().tolist()) for i, j in pairs) / len(pairs)

    expected = mean(fake) / mean(real)
    assert expected > 1.2
    for rows in (1, 4, 13, 1000):
        assert diversity(fake, real, rows=rows) == pytest.approx(expected, rel=1e-12)
    assert diversity(fake.float(), real.float()) == pytest.approx(expected, rel=1e-6)


def test_diversity_of_known_sets() -> None:
    real = torch.rand(20, 1, 6, 6)
    assert diversity(real.flip(0), real) == pytest.approx(1, rel=1e-12)
    assert diversity(0.5 + 0.25 * real, real) == pytest.approx(0.25, rel=1e-12)
    assert diversity(real[3].expand(30, 1, 6, 6), real) < 1e-12
    # Corners 0 and e_i of a cube of side 2: a pair is at distance 2 (with 0) or 2 sqrt 2.
    corners = torch.cat([torch.zeros(1, 4), 2 * torch.eye(4)]).reshape(5, 1, 2, 2)
    pair = torch.tensor([0.0, 0.5]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)  # at distance 1
    assert diversity(corners, pair) == pytest.approx((4 * 2 + 6 * 2 * math.sqrt(2)) / 10, rel=1e-12)


# --- what cannot be compared ---


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_refusals() -> None:
    x, bad = normal(10, 3), normal(10, 3)
    bad[4, 1] = float("nan")
    refused(lambda: frechet_distance(x[:1], x), "1 real features", "2 or more")
    refused(lambda: frechet_distance(x, x[:1]), "1 generated features")
    refused(lambda: frechet_distance(x, bad), "generated features", "finite")
    refused(lambda: prdc(bad, x, neighbours=3), "real features", "finite")
    refused(lambda: prdc(x, x, neighbours=0), "neighbours must be at least 1")
    refused(lambda: prdc(x, x[:4], neighbours=4), "neighbours=4", "4 generated images, got 4")
    refused(lambda: prdc(x[:4], x, neighbours=4), "more than 4 real images, got 4")
    prdc(x[:5], x[:5], neighbours=4)
    images = torch.rand(5, 1, 2, 2)
    infinite = images.clone()
    infinite[2, 0, 0, 1] = float("inf")
    refused(lambda: diversity(images[:1], images), "1 generated images")
    refused(lambda: diversity(images, images[:1]), "1 real images")
    refused(lambda: diversity(images, images[:1].expand(5, 1, 2, 2)), "real images are the same")
    refused(lambda: diversity(infinite, images), "generated images", "finite")


def test_arguments_are_left_as_they_were() -> None:
    real, fake = normal(12, 3), normal(11, 3, seed=1)
    before = real.clone(), fake.clone()
    frechet_distance(real, fake)
    prdc(real, fake, neighbours=2)
    diversity(fake[:, :, None, None], real[:, :, None, None])
    assert torch.equal(real, before[0])
    assert torch.equal(fake, before[1])
