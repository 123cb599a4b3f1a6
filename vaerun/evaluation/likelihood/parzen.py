"""Parzen-window log-likelihood of a generator's samples (Breuleux et al. 2011; Goodfellow et al. 2014, section 5).

A Gaussian of variance s2 stands on each of S generated images y_s, and an image x is given

    log p(x) = log 1/S sum_s N(x; y_s, s2 I)    nats, on pixels in [0, 1],

with s2 chosen on validation images. It is here because the first papers print it, and it is known to mislead. In so
many dimensions S samples do not cover the density that they come from, so the value says as much about S and s2 as
about the generator. Already for 6 x 6 patches it stays far from the true log-likelihood for any S that can be drawn,
and centres of a k-means of the training images score better than the training images themselves (Theis, van den Oord &
Bethge 2016). Beside annealed importance sampling it is too low by hundreds of nats (Wu et al. 2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vaerun.distributions.normal import LOG_2PI
from vaerun.errors import InputError, RunError

WARNING = (
    "the Parzen-window log-likelihood is known to mislead (Theis et al. 2016; Wu et al. 2017): it depends on the "
    "number of samples and on the window, and may order models wrongly"
)
VARIANCES = tuple(10 ** (0.2 * k - 6) for k in range(31))
"""Standard deviations from 0.001 to 1, ten in a decade; the code of Goodfellow et al. tries ten from 0.1 to 1. If log s
is off by a, the value is lower by about D a^2 nats."""
CHUNK_PAIRS = 2_000_000  # distances held at once, of 8 bytes, a few times over
IMAGE_BLOCK = 500  # images at a time


def parzen_log_likelihood(samples: Tensor, images: Tensor, variance: float, *, chunk: int | None = None) -> Tensor:
    """log 1/S sum_s N(x; sample_s, variance I) of each image: [N] nats (float64, CPU).

    Arguments:
        samples: generated images [S, C, H, W], pixels in [0, 1].
        images: [N, C, H, W], pixels in [0, 1].
        variance: s2 of the window.
        chunk: pairs of sample and image at a time (memory grows with it); it changes rounding alone. None: 2 million.

    Raises InputError for a variance that is not above 0, no samples, or images of another shape; RunError for samples
    that are not finite.
    """
    return _log_likelihoods(samples, images, [variance], chunk)[0]


def choose_parzen_variance(
    samples: Tensor, images: Tensor, variances: Sequence[float] = VARIANCES, *, chunk: int | None = None
) -> tuple[float, dict[float, float]]:
    """The window's variance with the largest mean log-likelihood of validation images, and the mean (nats) of each.

    Arguments:
        samples: generated images [S, C, H, W], pixels in [0, 1].
        images: validation images [N, C, H, W].
        variances: s2 to try; whether the best is the first or the last of them is what at_edge says.
        chunk: as in parzen_log_likelihood.

    Raises InputError and RunError as parzen_log_likelihood does; InputError for no variances or no images.
    """
    if not len(variances):
        raise InputError("a Parzen window's variance is chosen among some, and none was given")
    if not len(images):
        raise InputError("a Parzen window's variance is chosen on validation images, and there are none")
    means = _log_likelihoods(samples, images, variances, chunk).mean(1).tolist()
    values = dict(zip(map(float, variances), means, strict=True))
    return max(values, key=values.__getitem__), values


def is_at_edge(variance: float, values: dict[float, float]) -> bool:
    """Whether this is the smallest or the largest that was tried, so that a better one may lie beyond."""
    return variance in (min(values), max(values))


def _log_likelihoods(samples: Tensor, images: Tensor, variances: Sequence[float], chunk: int | None) -> Tensor:
    """[V, N] for V variances; each distance is computed once for all of them."""
    for variance in variances:
        if not 0 < variance < math.inf:
            raise InputError(f"the variance of a Parzen window must be a number above 0, got {variance}")
    if not len(samples):
        raise InputError("a Parzen window needs generated samples, and there are none")
    if samples.shape[1:] != images.shape[1:]:
        raise InputError(
            f"samples and images must have one shape, got {tuple(samples.shape[1:])} and {tuple(images.shape[1:])}"
        )
    pairs = CHUNK_PAIRS if chunk is None else chunk
    if pairs < 1:
        raise InputError(f"chunk must be at least 1, got {chunk}")
    if samples.device.type == "mps":  # Apple's GPUs have no float64
        samples = samples.cpu()
    y, x = samples.flatten(1), images.to(samples.device).flatten(1)
    centre = y.mean(0, dtype=torch.float64)
    if not bool(centre.isfinite().all()):
        raise RunError("the Parzen window's samples are not finite: look at the generator's losses and pictures")
    dims, rows = y.shape[1], min(IMAGE_BLOCK, pairs)
    found = []
    for images_block in x.split(rows):
        log_sum = torch.full((len(variances), len(images_block)), -math.inf, dtype=torch.float64, device=y.device)
        for samples_block in y.split(max(1, pairs // rows)):
            squared = _squared_distances(images_block.double() - centre, samples_block.double() - centre)
            for row, variance in zip(log_sum, variances, strict=True):
                row.copy_(torch.logaddexp(row, torch.logsumexp(squared / (-2 * variance), 1)))
        found.append(log_sum.cpu())
    constant = torch.tensor([-0.5 * dims * (LOG_2PI + math.log(v)) for v in variances], dtype=torch.float64)
    return torch.cat([*found, constant.new_empty(len(variances), 0)], 1) - math.log(len(y)) + constant.unsqueeze(1)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 of float64 rows about a common centre: [n, D] and [m, D] -> [n, m].

    The product form is what makes it fast. It errs by about eps |x|^2, which near the centre and in float64 is 1e-12
    at most; a window of variance 1e-6 turns that into 1e-6 nats. In float32 it would be hundreds of nats.
    """
    product = torch.addmm(y.square().sum(1), x, y.mT, alpha=-2)
    return product.add_(x.square().sum(1, keepdim=True)).clamp_(min=0)
