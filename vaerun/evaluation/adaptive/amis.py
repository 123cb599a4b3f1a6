"""Adaptive importance sampling (adaptation.py) of a split, and its bracket on images drawn from the model."""

from __future__ import annotations

import torch
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.errors import InputError
from vaerun.evaluation.adaptive.adaptation import Amis, adapt_proposal
from vaerun.evaluation.adaptive.bridge import final_estimate
from vaerun.evaluation.adaptive.mixture import wide_dtype
from vaerun.evaluation.adaptive.mode_search import MAX_MODES, Modes
from vaerun.evaluation.adaptive.model_modes import MATRIX_SHARE, amis_noise, model_modes
from vaerun.evaluation.likelihood.annealed import simulate
from vaerun.evaluation.likelihood.importance import batch_joint, default_chunk
from vaerun.evaluation.oom import map_batches
from vaerun.models import Joint, LatentModel
from vaerun.randomness import ImageNoise, derive_seed
from vaerun.tracking.monitor import SILENT, Monitor

MAX_LATENT_DIM = 1000  # a proposal has d x d matrices for each image and component
SAMPLES_PER_IMAGE = 40  # samples of one image evaluated at once, at least


def check_amis(model: LatentModel) -> None:
    """Raise InputError for a model that adaptive importance sampling cannot evaluate."""
    if not model.has_density:
        raise InputError("evaluation.amis needs a likelihood, and a plain autoencoder (model=ae) has none")
    if model.latent_dim > MAX_LATENT_DIM:
        raise InputError(
            f"evaluation.amis needs matrices of {model.latent_dim} x {model.latent_dim} for each image, and supports "
            f"up to {MAX_LATENT_DIM} latent dimensions"
        )


def _evaluate(
    model: LatentModel,
    joint: Joint,
    images: list[int],
    amis: Amis,
    seed: int,
    *,
    posterior_start: bool,
    exact: Tensor | None,
    chunk: int,
    monitor: Monitor,
) -> dict[str, Tensor]:
    """Values per image [B] of a batch, whose noise is that of `images`."""
    noise = amis_noise(model, images, seed)
    modes = model_modes(model, joint, noise, amis, posterior_start=posterior_start, chunk=chunk, monitor=monitor)
    groups, parts = by_count(modes), []
    for rows, count in groups:
        here, here_noise = joint.select(rows), noise.select(rows)
        proposal, rounds, reliable = adapt_proposal(
            here, modes.select(rows, count), here_noise, amis, chunk=chunk, monitor=monitor
        )
        latent = None if exact is None else exact[rows]
        values = final_estimate(here, proposal, reliable, here_noise, amis, exact=latent, chunk=chunk, monitor=monitor)
        parts.append(values | {"rounds": rounds})
    order, wide = torch.cat([rows for rows, _ in groups]).argsort(), wide_dtype(joint.x.device)
    merged = {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}
    return {
        "amis": merged["log_likelihood"],
        "amis_ess": merged["effective_sample_size"],
        "amis_pareto_k": merged["pareto_k"],
        "amis_starts": modes.starts.to(wide),
        "amis_starts_disagree": modes.disagreed.to(wide),
        "amis_modes": modes.count.to(wide),
        "amis_rounds": merged["rounds"].to(wide),
        "amis_bridged": merged["bridged"].to(wide),
        **({} if exact is None else {"amis_upper": merged["upper"]}),
    }


def by_count(modes: Modes) -> list[tuple[Tensor, int]]:
    """Groups of images with similar numbers of modes, each as (rows, number); one batch would compute most for all."""
    groups, count = [], modes.count
    lower = 0
    while lower < MAX_MODES:
        upper = max(1, 2 * lower)
        rows = ((count > lower) & (count <= upper)).nonzero()[:, 0]
        if len(rows):
            groups.append((rows, upper))
        lower = upper
    return groups


def samples_per_image(latent_dim: int) -> int:
    """Latent samples of a chunk per image of a batch."""
    return max(SAMPLES_PER_IMAGE, latent_dim**2 // MATRIX_SHARE)


def adaptive_importance_sampling(
    model: LatentModel,
    split: Split,
    amis: Amis,
    *,
    seed: int,
    images: int | None = None,
    posterior_start: bool = True,
    chunk: int | None = None,
    monitor: Monitor = SILENT,
) -> dict[str, Tensor]:
    """log p(x | c) by adaptive importance sampling, and its diagnostics, for each image of a split.

    Arguments:
        model: in evaluation mode.
        split: images to evaluate; densities include the transform's log|det|.
        amis: the settings.
        seed: of the noise; image i's depends on (seed, i) alone.
        images: number of images to evaluate, starting with the first; None: all.
        posterior_start: also search for modes from q's mean; otherwise from draws of the prior only.
        chunk: latent samples evaluated at once (memory grows with it); None: default_chunk.
        monitor: checked between chunks, advanced by images, warned if memory runs out and `chunk` is halved.

    Returns per image [N] (float64, CPU): amis, nats, a lower bound in expectation from K = amis.samples; amis_ess, in
    samples; amis_pareto_k; amis_starts, the number of mode searches, amis_starts_disagree, 1 where twice as many starts
    changed the evidence of the modes by more than 0.5 nats; amis_modes and amis_rounds.

    Raises InputError for a model that has no density, or too many latent dimensions.
    """
    check_amis(model)

    def compute(start: int, end: int, batch_size: int) -> dict[str, Tensor]:
        batch = split.batch(start, end)
        values = _evaluate(
            model,
            batch_joint(model, batch, seed),
            batch.rows.tolist(),
            amis,
            seed,
            posterior_start=posterior_start,
            exact=None,
            chunk=batch_size,
            monitor=monitor,
        )
        values["amis"] += batch.log_det
        return values

    count = len(split) if images is None else min(images, len(split))
    with torch.no_grad():
        return map_batches(
            count,
            chunk or default_chunk(split.images.device),
            compute,
            monitor=monitor,
            task=f"adaptive importance sampling of {split.name}",
            setting="evaluation.chunk",
            samples=samples_per_image(model.latent_dim),
        )


def amis_bracket(
    model: LatentModel,
    amis: Amis,
    *,
    images: int,
    seed: int,
    posterior_start: bool = True,
    chunk: int | None = None,
    monitor: Monitor = SILENT,
) -> dict[str, Tensor]:
    """Lower and upper bounds of log p(x | c) on images drawn from the model, where a posterior sample is known.

    The lower bound is that of real images. The upper bound counts the latent that made the image among the samples
    (Sobolev & Vetrov 2019; the idea is that of Grosse et al. 2015): if the search has missed its mode, its weight is
    large, and the bracket wide. For real images the bracket is evidence, not proof.

    Arguments: see adaptive_importance_sampling; `images` is the number of images to draw, whose labels cycle through
    the classes of a conditional model.

    Returns per image [N] (float64, CPU): amis_lower, amis_upper (nats, of x as the model sees it). Means over images
    satisfy lower <= log p(x | c) <= upper in expectation.

    Raises InputError for a model that has no density, or too many latent dimensions.
    """
    check_amis(model)

    def compute(start: int, end: int, batch_size: int) -> dict[str, Tensor]:
        indices = list(range(start, end))
        x, z, c = simulate(model, indices, seed)
        bracket_seed = derive_seed(seed, "bracket")
        joint = model.joint(x, c, ImageNoise(bracket_seed, indices, model.latent_dim, model.mean))
        values = _evaluate(
            model,
            joint,
            indices,
            amis,
            bracket_seed,
            posterior_start=posterior_start,
            exact=z,
            chunk=batch_size,
            monitor=monitor,
        )
        return {"amis_lower": values["amis"], "amis_upper": values["amis_upper"]}

    with torch.no_grad():
        return map_batches(
            images,
            chunk or default_chunk(model.mean.device),
            compute,
            monitor=monitor,
            task="bracket on simulated images",
            setting="evaluation.chunk",
            samples=samples_per_image(model.latent_dim),
        )
