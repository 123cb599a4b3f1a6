"""Sample quality without a likelihood: distances between sets of images, or between sets of their features.

**Frechet distance** (Heusel et al. 2017, eq. 6) of the Gaussians with the moments of two sets of features,

    |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)).

With symmetric roots R = C^(1/2), C1 C2 is similar to R1 C2 R1 = (R1 R2)(R1 R2)', so Tr (C1 C2)^(1/2) is the sum of the
singular values of R1 R2. This avoids the root of a nonsymmetric matrix, and the loss of half the digits where a
covariance is singular.

**Precision and recall** (Kynkaanniemi et al. 2019, eqs. 1-2) estimate a distribution's support by the union of closed
balls around its features, with the distance to the k-th nearest other feature of the same set as radius. Precision is
the fraction of generated features within the real support, recall that of real features within the generated support.
**Density and coverage** (Naeem et al. 2020, eqs. 3-4) use the real balls only. Density is the number of balls that
contain a generated feature, divided by k: 1 in expectation where both distributions are the same, more where samples
concentrate at modes. Coverage is the fraction of real balls that contain a generated feature. An outlier among the
generated features has a large ball and inflates recall, but not coverage.

None of these metrics is comparable across feature spaces, data sets, numbers of images or k. The Frechet distance of
few images is biased upwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vaerun.errors import InputError

DISTANCE_BLOCK = 2**20
"""Distances computed at once: a few arrays of 8 MiB in float64."""
TIE_TOLERANCE = 1e-12
"""Squared distances within this tolerance, relative to the squared norms, count as equal: images may be copies."""


@dataclass(frozen=True)
class PRDC:
    """Precision, recall, density and coverage of generated features.

    Attributes:
        precision, recall, coverage: fractions in [0, 1].
        density: in [0, real images / k].
    """

    precision: float
    recall: float
    density: float
    coverage: float


def _check_count(count: int, what: str) -> None:
    if count < 2:
        raise InputError(f"comparing samples with data needs 2 or more of each, got {count} {what}: use more")


def _check_finite(values: Tensor, what: str) -> None:
    if not bool(values.isfinite().all()):
        raise InputError(f"some of the {what} are not finite: samples cannot be compared with data")


def _to_float64(features: Tensor, what: str) -> Tensor:
    """Check features and convert them to float64, on the CPU where their device lacks it."""
    _check_count(len(features), what)
    _check_finite(features, what)
    return features.detach().to("cpu" if features.device.type == "mps" else features.device).double()


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Squared Frechet distance between the Gaussians with the moments of two sets of features [N, n] and [M, n].

    Covariances are unbiased. Raises InputError for fewer than two features in a set, or features that are not finite.
    """
    a, b = _to_float64(real, "real features"), _to_float64(fake, "generated features")
    shift = a.mean(0) - b.mean(0)
    first, second = _covariance(a), _covariance(b)
    cross = torch.linalg.svdvals(_matrix_sqrt(first) @ _matrix_sqrt(second)).sum()
    # Rounding may make it slightly negative.
    return max(float(shift @ shift + first.trace() + second.trace() - 2 * cross), 0.0)


def _covariance(features: Tensor) -> Tensor:
    centred = features - features.mean(0)
    return centred.T @ centred / (len(features) - 1)


def _matrix_sqrt(covariance: Tensor) -> Tensor:
    """The symmetric square root."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def prdc(real: Tensor, fake: Tensor, *, neighbours: int, block: int = DISTANCE_BLOCK) -> PRDC:
    """Precision, recall, density and coverage of generated features.

    Arguments:
        real, fake: features [N, n] and [M, n].
        neighbours: k; commonly 3 for precision and recall, 5 for density and coverage.
        block: distances computed at once (memory grows with it); it does not change the result.

    Raises InputError for k < 1, for k or fewer features in a set, and for features that are not finite.
    """
    if neighbours < 1:
        raise InputError(f"neighbours must be at least 1, got {neighbours}")
    a, b = _to_float64(real, "real features"), _to_float64(fake, "generated features")
    for features, what in ((a, "real"), (b, "generated")):
        if len(features) <= neighbours:
            raise InputError(
                f"neighbours={neighbours} needs more than {neighbours} {what} images, got {len(features)}: use more "
                "images or fewer neighbours"
            )
    centre = a.mean(0)  # a common offset would cost precision
    a, b = a - centre, b - centre
    real_radius, fake_radius = (_knn_radius(features, neighbours, block) for features in (a, b))
    within = torch.zeros(len(b), dtype=torch.int64, device=b.device)
    covered, recalled = 0, 0
    for rows, squared in _squared_distances(a, b, block):
        inside = squared <= real_radius[rows, None]
        within += inside.sum(0)
        covered += int(inside.any(1).sum())
        recalled += int((squared <= fake_radius).any(1).sum())
    return PRDC(
        precision=float((within > 0).double().mean()),
        recall=recalled / len(a),
        density=int(within.sum()) / (neighbours * len(b)),
        coverage=covered / len(a),
    )


def _squared_distances(a: Tensor, b: Tensor, block: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of the rows of a [N, n] and their squared distances [rows, M] to b [M, n], less TIE_TOLERANCE."""
    first, second = (features.square().sum(1).mul_(1 - TIE_TOLERANCE) for features in (a, b))
    step = max(1, block // len(b))
    for start in range(0, len(a), step):
        rows = slice(start, start + step)
        yield rows, torch.addmm(second.expand(len(first[rows]), -1), a[rows], b.T, alpha=-2).add_(first[rows, None])


def _knn_radius(features: Tensor, neighbours: int, block: int) -> Tensor:
    """Squared distance of each feature to its k-th nearest neighbour in the set, [N]."""
    norms, radius = features.square().sum(1), torch.empty_like(features[:, 0])
    for rows, squared in _squared_distances(features, features, block):
        squared.diagonal(rows.start).fill_(torch.inf)
        # kthvalue is not deterministic on a GPU.
        nearest, index = (output[:, -1] for output in squared.topk(neighbours, dim=1, largest=False))
        radius[rows] = nearest + TIE_TOLERANCE * (norms[rows] + norms[index])
    return radius


def diversity(fake: Tensor, real: Tensor, *, rows: int = 1000) -> float:
    """Mean pairwise Euclidean distance of generated images relative to that of real images, over all pairs.

    1 means as varied as the data, 0 that all samples are the same. It does not measure quality: noise is more varied
    than data.

    Arguments:
        fake: generated images [N, C, H, W] in [0, 1].
        real: real images [M, C, H, W].
        rows: block size: distances of `rows` images to `rows` others are computed at once.

    Raises InputError for fewer than two images in a set, pixels that are not finite, or identical real images.
    """
    if len(real) > 1 and bool((real == real[:1]).all()):
        raise InputError(f"all {len(real)} real images are the same: diversity relative to them is undefined")
    return _mean_distance(fake, "generated images", rows) / _mean_distance(real, "real images", rows)


def _mean_distance(images: Tensor, what: str, rows: int) -> float:
    """Mean Euclidean distance over all pairs i < j."""
    if images.device.type == "mps":
        images = images.cpu()
    _check_count(len(images), what)
    flat = images.detach().flatten(1)
    # There may be no memory for a float64 copy of all images.
    centre = flat.mean(0, dtype=torch.float64)
    _check_finite(centre, what)
    total, count = 0.0, len(flat)
    for i in range(0, count, rows):
        a = flat[i : i + rows].double() - centre
        for j in range(i, count, rows):
            b = a if i == j else flat[j : j + rows].double() - centre
            squared = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
            distance = squared.clamp_min(0).sqrt()
            total += float(distance.triu(1).sum() if i == j else distance.sum())
    return total / (count * (count - 1) / 2)
