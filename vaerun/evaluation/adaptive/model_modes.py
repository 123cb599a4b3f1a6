"""The modes of the posteriors of a batch of images, with the noise and the starts of adaptive importance sampling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vaerun.evaluation.adaptive.adaptation import Amis
from vaerun.evaluation.adaptive.mixture import EXTRA_NOISE
from vaerun.evaluation.adaptive.mode_search import LogDensity, Modes, find_modes
from vaerun.models import Joint, LatentModel
from vaerun.randomness import ImageNoise, derive_seed
from vaerun.tracking.monitor import SILENT, Monitor

MATRIX_SHARE = 32  # a batch has at most one image per d^2 / MATRIX_SHARE latent samples of a chunk


def amis_noise(model: LatentModel, images: Sequence[int], seed: int) -> ImageNoise:
    """The noise of these images: d + EXTRA_NOISE numbers per sample."""
    return ImageNoise(derive_seed(seed, "amis"), images, model.latent_dim + EXTRA_NOISE, model.mean)


def model_modes(
    model: LatentModel,
    joint: Joint,
    noise: ImageNoise,
    amis: Amis,
    *,
    posterior_start: bool = True,
    target: LogDensity | None = None,
    chunk: int,
    monitor: Monitor = SILENT,
) -> Modes:
    """The modes of each image of a batch, searched from draws of the prior and, with `posterior_start`, q's centre.

    Arguments:
        model: in evaluation mode.
        joint: log p(x, z | c) of the batch.
        noise: amis_noise of its images.
        amis: the settings.
        posterior_start: whether to start from q's centre too.
        target: evaluated in place of the joint, such as one that counts its evaluations.
        chunk: latent samples evaluated at once.
        monitor: checked at each step.
    """
    d = model.latent_dim

    def draw(first: int, last: int) -> Tensor:
        return joint.prior.transform(noise(f"amis/starts/{first}", last - first)[..., :d])[0]

    start = model.infer(joint).centre.unsqueeze(0) if posterior_start else joint.x.new_zeros(0, len(joint.x), d)
    return find_modes(
        joint if target is None else target,
        start,
        draw,
        starts=amis.starts,
        max_starts=amis.max_starts,
        chunk=max(1, chunk // d),
        monitor=monitor,
    )
