"""Statistics of the latent space: posterior moments of every image, active units, KL by dimension, and their pictures.

Unit i is active if its posterior mean depends on the image, Var_x(E_q[z_i | x]) > 0.01 (Burda et al. 2016, section
5.2). KL by dimension is the mean over images of KL(N(m_i, v_i) || p_i), with m_i, v_i the posterior mean and variance
of z_i: exact for a Gaussian posterior, otherwise that of the normal distribution with the same moments. With a
factorised prior, the sum over dimensions is KL(q || p) minus the total correlation of a Gaussian q, and equal to it
where q is diagonal.

Where moments are estimated from S samples, the variance v / S of the mean is subtracted from Var_x and from
(m - prior mean)^2, so that an inactive unit does not appear active, and the bias of log v, which for normal z is
digamma((S - 1) / 2) - log((S - 1) / 2), from the KL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.distributions import Delta, LatentDistribution
from vaerun.errors import InputError
from vaerun.evaluation.oom import adaptive_batches
from vaerun.evaluation.plots.charts import Ellipse, bar_chart, scatter
from vaerun.models import Joint, LatentModel
from vaerun.randomness import ImageNoise
from vaerun.tracking.monitor import SILENT, Monitor

ACTIVE_THRESHOLD = 0.01  # Burda et al. 2016
LATENTS_PER_CALL = 4_000  # latent samples passed through a flow at once


@dataclass(frozen=True)
class LatentStatistics:
    """Posterior moments per image, on the CPU in float64.

    Attributes:
        means, variances: of q(z | x), [N, d].
        draws: one sample of q(z | x), [N, d].
        prior_means, prior_variances: of p(z | c), [N, d].
        labels: int64 [N], or None without labels.
        samples: number of samples that moments were estimated from; 0: they are exact.
    """

    means: Tensor
    variances: Tensor
    draws: Tensor
    prior_means: Tensor
    prior_variances: Tensor
    labels: Tensor | None
    samples: int

    @property
    def _noise(self) -> Tensor | float:
        """Variance of the estimated means, [N, d]."""
        return self.variances / self.samples if self.samples else 0.0

    @property
    def mean_variances(self) -> Tensor:
        """Var_x(E_q[z_i | x]) [d], normalised by N; slightly negative values are possible if it is estimated."""
        noise = self._noise
        variances = self.means.var(0, correction=0)
        return variances - noise.mean(0) if isinstance(noise, Tensor) else variances

    @property
    def active(self) -> Tensor:
        """Whether each unit is active, bool [d]."""
        return self.mean_variances > ACTIVE_THRESHOLD

    @property
    def active_units(self) -> int:
        """Number of active units."""
        return int(self.active.sum())

    @property
    def kl(self) -> Tensor:
        """Mean over images of KL(N(m_i, v_i) || p_i) [d] nats."""
        distance = (self.means - self.prior_means).square() - self._noise
        ratio = self.variances / self.prior_variances
        log_ratio = ratio.log()
        # The log of a sample variance of normal z is biased; the bias would dominate DRAW's KLs of about 0.001 nats.
        if self.samples:
            half = torch.tensor((self.samples - 1) / 2, dtype=torch.float64, device="cpu")
            log_ratio = log_ratio - (torch.digamma(half) - half.log())
        return 0.5 * (ratio + distance / self.prior_variances - 1 - log_ratio).mean(0)


def latent_statistics(
    model: LatentModel,
    split: Split,
    *,
    seed: int,
    images: int | None = None,
    batch: int = 500,
    samples: int = 500,
    monitor: Monitor = SILENT,
) -> LatentStatistics:
    """Posterior moments of a split's images.

    Arguments:
        model: in evaluation mode.
        split: the images.
        seed: of the noise, which is keyed by image: neither `batch` nor other images change a result.
        images: number of images to use, starting with the first; None: all.
        batch: images per batch.
        samples: number of samples for moments that q does not have in closed form.
        monitor: checked between batches, warned if memory runs out and `batch` is halved.

    Raises InputError for fewer than 2 samples.
    """
    if samples < 2:
        raise InputError(f"latent_statistics: samples must be at least 2 to estimate a variance, got {samples}")
    count = len(split) if images is None else min(images, len(split))
    if not count:
        raise InputError(f"latent_statistics: the {split.name} split has no images")
    estimated = False

    def compute(start: int, end: int, batch_size: int) -> tuple[Tensor, ...]:
        nonlocal estimated
        monitor.check()
        part = split.batch(start, end)
        noise = ImageNoise(seed, part.rows.tolist(), model.latent_dim, model.mean)
        joint = model.joint(part.x, part.c if model.classes else None, noise)
        q = model.infer(joint)
        estimated = not q.exact_moments
        mean, variance, draw = _sampled_moments(joint, q, samples) if estimated else _moments(joint, q)
        prior = joint.prior
        values = (mean, variance, draw, prior.mean, torch.exp(prior.log_variance))  # type: ignore[attr-defined]
        return tuple(value.cpu().double() for value in values)

    task = f"posterior moments of {split.name}"
    with torch.no_grad():
        parts = list(adaptive_batches(count, batch, compute, monitor=monitor, task=task, setting="evaluation.images"))
    means, variances, draws, prior_means, prior_variances = (torch.cat(column) for column in zip(*parts, strict=True))
    return LatentStatistics(
        means,
        variances,
        draws,
        prior_means,
        prior_variances,
        labels=None if split.labels is None else split.labels[:count].cpu(),
        samples=samples if estimated else 0,
    )


def _moments(joint: Joint, q: LatentDistribution) -> tuple[Tensor, Tensor, Tensor]:
    draw = q.value if isinstance(q, Delta) else q.transform(joint.noise("latent", 1))[0][0]
    return q.mean, q.variance, draw


def _sampled_moments(joint: Joint, q: LatentDistribution, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, unbiased variance and the first of `samples` samples of q, each [B, d]."""
    noise = joint.noise("latent", samples)
    z = torch.cat([q.transform(chunk)[0] for chunk in noise.split(max(1, LATENTS_PER_CALL // noise.shape[1]))])
    return z.mean(0), z.var(0), z[0]


# -- pictures ---------------------------------------------------------------------------------------------------------


def latent_pictures(statistics: LatentStatistics, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Pictures [3, H, W] in [0, 1] by name: kl_by_dimension, and for d = 2 posterior_means and aggregate_posterior.

    Arguments:
        statistics: the moments to show.
        names: of the classes; None: their numbers.
    """
    pictures = {"kl_by_dimension": kl_chart(statistics)}
    if statistics.means.shape[1] == 2:
        pictures["posterior_means"] = latent_scatter(statistics, statistics.means, "posterior means", names)
        pictures["aggregate_posterior"] = latent_scatter(
            statistics, statistics.draws, "aggregate posterior, one sample per image", names
        )
    return pictures


def kl_chart(statistics: LatentStatistics) -> Tensor:
    """Bar chart of the KL of each dimension, the largest first, active and inactive units in two colours: [3, H, W].

    It shows the KL of normal marginals: if q's dimensions are dependent, their sum is less than the KL of q.
    """
    kl, active = statistics.kl, statistics.active.tolist()
    order = torch.argsort(kl, descending=True).tolist()
    bars = {str(i): {"active" if active[i] else "inactive": float(kl[i])} for i in order}
    summary = f"{statistics.active_units} of {len(order)} units active, sum {float(kl.sum()):.2f} nats"
    estimate = f", moments from {statistics.samples} samples" if statistics.samples else ""
    return bar_chart(
        bars,
        xlabel="latent dimension, sorted by KL",
        ylabel="nats",
        title=f"KL of q's marginals by dimension, mean over {len(statistics.means)} images{estimate}: {summary}",
        stacked=True,
    )


def latent_scatter(
    statistics: LatentStatistics, points: Tensor, title: str, names: Sequence[str] | None = None
) -> Tensor:
    """Scatter plot of points [N, 2] in a two-dimensional latent space, coloured by label, with contours of the prior.

    The contours are at 1 and 2 standard deviations; a conditional prior has a pair of ellipses per class, in its
    colour. Raises InputError unless d = 2.
    """
    if statistics.means.shape[1] != 2:
        raise InputError(f"a latent scatter plot needs model.latent_dim=2, got {statistics.means.shape[1]}")
    priors = torch.cat([statistics.prior_means, statistics.prior_variances.sqrt()], 1)
    distinct, prior_of_image = priors.unique(dim=0, return_inverse=True)
    ellipses = []
    for number, (x, y, width, height) in enumerate(distinct.tolist()):
        colour = None
        if len(distinct) > 1 and statistics.labels is not None:
            colour = int(statistics.labels[prior_of_image == number][0])
        ellipses += [Ellipse((x, y), (r * width, r * height), colour) for r in (1.0, 2.0)]
    return scatter(
        points,
        title=f"{title}, {len(points)} images; lines: the prior at 1 and 2 standard deviations",
        xlabel="z 0",
        ylabel="z 1",
        labels=statistics.labels,
        names=names,
        ellipses=ellipses,
    )
