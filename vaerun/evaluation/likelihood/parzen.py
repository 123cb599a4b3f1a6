"""Parzen-window log-likelihood of a generator's samples (Breuleux et al. 2011; Goodfellow et al. 2014, section 5).

Each of S generated images y_s is the centre of a Gaussian of variance s2, and an image x has

    log p(x) = log 1/S sum_s N(x; y_s, s2 I)    nats, on pixels in [0, 1],

with s2 chosen on validation images. It is implemented for comparison with the early papers that report it, and is known
to mislead. In high dimensions S samples do not cover the density that they are drawn from, so the value depends on S
and s2 as much as on the generator. Even for 6 x 6 patches it stays far from the true log-likelihood for any practical
S, and k-means centres of the training images score better than the training images themselves (Theis, van den Oord &
Bethge 2016). It is hundreds of nats below annealed importance sampling (Wu et al. 2017).
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
"""Standard deviations from 0.001 to 1, ten per decade; the code of Goodfellow et al. tries ten from 0.1 to 1. An error
a in log s lowers the value by about D a^2 nats."""
CHUNK_PAIRS = 2_000_000  # distances in memory at once: a few arrays of 16 MB in float64
IMAGE_BLOCK = 500  # images at once


def parzen_log_likelihood(samples: Tensor, images: Tensor, variance: float, *, chunk: int | None = None) -> Tensor:
    """log 1/S sum_s N(x; sample_s, variance I) per image: [N] nats (float64, CPU).

    Arguments:
        samples: generated images [S, C, H, W], pixels in [0, 1].
        images: [N, C, H, W], pixels in [0, 1].
        variance: s2 of the window.
        chunk: pairs of a sample and an image at once (memory grows with it); it changes rounding only. None: 2 million.

    Raises InputError for a variance that is not positive, no samples, or images of another shape; RunError for samples
    that are not finite.
    """
    return _log_likelihoods(samples, images, [variance], chunk)[0]


def choose_parzen_variance(
    samples: Tensor, images: Tensor, variances: Sequence[float] = VARIANCES, *, chunk: int | None = None
) -> tuple[float, dict[float, float]]:
    """The variance with the largest mean log-likelihood of validation images, and that mean (nats) for each variance.

    Arguments:
        samples: generated images [S, C, H, W], pixels in [0, 1].
        images: validation images [N, C, H, W].
        variances: candidates for s2; see is_at_edge.
        chunk: see parzen_log_likelihood.

    Raises InputError and RunError as parzen_log_likelihood does, and InputError for no variances or no images.
    """
    if not len(variances):
        raise InputError("choosing the variance of a Parzen window needs at least one candidate, got none")
    if not len(images):
        raise InputError("the variance of a Parzen window is chosen on validation images, but there are none")
    means = _log_likelihoods(samples, images, variances, chunk).mean(1).tolist()
    values = dict(zip(map(float, variances), means, strict=True))
    return max(values, key=values.__getitem__), values


def is_at_edge(variance: float, values: dict[float, float]) -> bool:
    """Whether this is the smallest or largest variance tried, so that a better one may lie beyond."""
    return variance in (min(values), max(values))


def _log_likelihoods(samples: Tensor, images: Tensor, variances: Sequence[float], chunk: int | None) -> Tensor:
    """Log-likelihoods [V, N] for V variances; each distance is computed once for all of them."""
    for variance in variances:
        if not 0 < variance < math.inf:
            raise InputError(f"the variance of a Parzen window must be a number above 0, got {variance}")
    if not len(samples):
        raise InputError("a Parzen window needs generated samples, but there are none")
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
        raise RunError("the Parzen window's samples are not finite: check the generator's losses and pictures")
    dims, rows = y.shape[1], min(IMAGE_BLOCK, pairs)
    log_sums = []
    for images_block in x.split(rows):
        log_sum = torch.full((len(variances), len(images_block)), -math.inf, dtype=torch.float64, device=y.device)
        for samples_block in y.split(max(1, pairs // rows)):
            squared = _squared_distances(images_block.double() - centre, samples_block.double() - centre)
            for row, variance in zip(log_sum, variances, strict=True):
                row.copy_(torch.logaddexp(row, torch.logsumexp(squared / (-2 * variance), 1)))
        log_sums.append(log_sum.cpu())
    constants = [-0.5 * dims * (LOG_2PI + math.log(v)) for v in variances]
    constant = torch.tensor(constants, dtype=torch.float64, device="cpu")
    return torch.cat([*log_sums, constant.new_empty(len(variances), 0)], 1) - math.log(len(y)) + constant.unsqueeze(1)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 of centred float64 rows: [n, D] and [m, D] -> [n, m].

    The product form is fast, and has an error of about eps |x|^2. In float64 and with centred rows that is at most
    1e-12, or 1e-6 nats with a window of variance 1e-6; in float32 it would be hundreds of nats.
    """
    product = torch.addmm(y.square().sum(1), x, y.mT, alpha=-2)
    return product.add_(x.square().sum(1, keepdim=True)).clamp_(min=0)
