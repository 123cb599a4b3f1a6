"""Importance-weighted log-likelihood: log p(x) ~ logsumexp_K log w - log K, log w = log p(x, z) - log q(z | x), z ~ q.

A lower bound of log p(x) in expectation for every K, tight as K grows (Burda et al. 2016, theorem 1). The posterior is
inferred once per image; the samples are drawn in blocks of fixed size, each keyed by (seed, image, block), and combined
by a running logaddexp, so neither the chunk size nor the other images change a result.

Two diagnostics say how far an image's estimate can be trusted. The effective sample size (sum w)^2 / sum w^2, from 1 to
K, is the number of equal weights with the same variance; it sees only the weights that were drawn. Pareto k-hat
(pareto.py) measures how heavy their tail is: above 0.7 rare large weights that were not drawn may dominate.
"""

from __future__ import annotations

import math
from time import perf_counter

import torch
from torch import Tensor

from vaerun.data.dataset import Batch, Split
from vaerun.distributions import LatentDistribution
from vaerun.errors import InputError
from vaerun.evaluation.likelihood.pareto import keep_largest, pareto_k, tail_length
from vaerun.evaluation.oom import map_batches
from vaerun.models import Joint, LatentModel
from vaerun.randomness import ImageNoise
from vaerun.tracking.monitor import SILENT, Monitor

NOISE_BLOCK = 500  # samples per block of noise: part of the noise streams, so it must not change
METRICS = ("log_likelihood", "elbo", "kl", "reconstruction", "effective_sample_size", "pareto_k")
DENSITY_METRICS = ("log_likelihood", "elbo", "reconstruction")  # metrics to which a transform's log|det| is added
PARETO_K_LIMIT = 0.7  # Vehtari et al. 2024, section 3.2.4
ROUNDING_EPS = 8  # in units of eps (|log p(x | z)| + D); with exact posteriors log-weights spread by up to 3 in float32


def default_chunk(device: torch.device) -> int:
    """Default number of latent samples evaluated at once: what a CPU's caches hold, or what keeps a GPU busy."""
    return 4_000 if device.type == "cpu" else 100_000


def importance_statistics(
    joint: Joint, q: LatentDistribution, samples: int, *, chunk: int | None = None, monitor: Monitor = SILENT
) -> dict[str, Tensor]:
    """Importance-weighted log-likelihood, ELBO and its two terms (nats), effective sample size and k-hat per image [B].

    All come from the same samples of q; only the largest weights are stored. k-hat is that of pareto.pareto_k: NaN
    where K <= 20, -inf if the weights are equal up to the rounding of log p(x | z), as with an exact posterior.

    Arguments:
        joint: log p(x, z | c) of a batch, with its noise.
        q: the proposal.
        samples: K.
        chunk: latent samples evaluated at once; None: default_chunk.
        monitor: checked between chunks.
    """
    accumulator = torch.float32 if joint.x.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    log_sum = torch.full((len(joint.x),), -math.inf, device=joint.x.device, dtype=accumulator)
    log_squares, largest = log_sum, log_sum.new_empty(0, len(log_sum))
    kl, reconstruction = torch.zeros_like(log_sum), torch.zeros_like(log_sum)
    rows = max(1, (chunk or default_chunk(joint.x.device)) // len(joint.x))
    for block, start in enumerate(range(0, samples, NOISE_BLOCK)):
        for noise in joint.noise(f"importance/{block}", NOISE_BLOCK)[: min(NOISE_BLOCK, samples - start)].split(rows):
            monitor.check()
            z, log_q = q.transform(noise)
            log_likelihood, log_prior = joint.log_likelihood(z).to(accumulator), joint.prior.log_prob(z).to(accumulator)
            log_w = log_likelihood + log_prior - log_q
            log_sum = torch.logaddexp(log_sum, torch.logsumexp(log_w, 0))
            log_squares = torch.logaddexp(log_squares, torch.logsumexp(2 * log_w, 0))
            largest = keep_largest(largest, log_w, tail_length(samples) + 1)
            kl += (log_q - log_prior).sum(0)
            reconstruction += log_likelihood.sum(0)
    # Some nats per pixel are added up, even if the sum is near zero.
    magnitude = (reconstruction / samples).abs() + joint.x[0].numel()
    rounding = ROUNDING_EPS * torch.finfo(joint.x.dtype).eps * magnitude
    return {
        "log_likelihood": log_sum - math.log(samples),
        "elbo": (reconstruction - kl) / samples,
        "kl": kl / samples,
        "reconstruction": reconstruction / samples,
        "effective_sample_size": torch.exp(2 * log_sum - log_squares),
        "pareto_k": pareto_k(largest, samples, rounding),
    }


def effective_sample_size(log_weight: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2, from 1 to K, or 0 if all weights are 0: [K, B] -> [B]."""
    return torch.exp(2 * torch.logsumexp(log_weight, 0) - torch.logsumexp(2 * log_weight, 0)).nan_to_num(nan=0)


def unreliable_share(pareto_k: Tensor) -> float:
    """Fraction of the images with a k-hat [N] whose k-hat exceeds 0.7, in [0, 1]; NaN if none has one (K <= 20)."""
    defined = pareto_k[~pareto_k.isnan()]
    return float((defined > PARETO_K_LIMIT).double().mean()) if len(defined) else math.nan


def check_samples(samples: int) -> int:
    """Return K unchanged. Raises InputError unless it is at least 1."""
    if samples < 1:
        raise InputError(f"evaluation.samples must be at least 1, got {samples}")
    return samples


def batch_joint(model: LatentModel, batch: Batch, seed: int) -> Joint:
    """log p(x, z | c) of a batch of a split, with the evaluation noise of its images."""
    noise = ImageNoise(seed, batch.rows.tolist(), model.latent_dim, model.mean)
    return model.joint(batch.x, batch.c if model.classes else None, noise)


def importance_sampling(
    model: LatentModel,
    split: Split,
    *,
    samples: int,
    seed: int,
    images: int | None = None,
    chunk: int | None = None,
    monitor: Monitor = SILENT,
) -> dict[str, Tensor]:
    """Importance-weighted log-likelihood and its diagnostics for each image of a split.

    Arguments:
        model: in evaluation mode.
        split: images to evaluate; densities include the transform's log|det|.
        samples: K.
        seed: of the noise.
        images: number of images to evaluate, starting with the first; None: all.
        chunk: latent samples evaluated at once (memory grows with it); None: default_chunk.
        monitor: checked between chunks, advanced by images, warned if memory runs out and `chunk` is halved. It gets
            one forecast before the first batch is done, extrapolated from a block of samples, unless that block is the
            entire evaluation.

    Returns per image [N] (float64, CPU): log_likelihood (K samples), elbo, kl, reconstruction in nats (means over the
    same samples; kl is the Monte Carlo estimate); effective_sample_size, in samples; pareto_k, see
    importance_statistics.
    """
    check_samples(samples)
    count = len(split) if images is None else min(images, len(split))
    first_block = min(NOISE_BLOCK, samples)
    forecast_due = monitor.wants_forecast

    def compute(start: int, end: int, batch_size: int) -> dict[str, Tensor]:
        nonlocal forecast_due
        batch = split.batch(start, end)
        joint = batch_joint(model, batch, seed)
        started = perf_counter()
        q = model.infer(joint)
        # A block that is the entire evaluation would be computed twice.
        if forecast_due and (first_block < samples or len(batch.rows) < count):
            inferred = perf_counter()
            block = importance_statistics(joint, q, first_block, chunk=batch_size, monitor=monitor)
            float(block["elbo"][0])  # waits for the device
            batch_seconds = (inferred - started) + (perf_counter() - inferred) * samples / first_block
            monitor.forecast(batch_seconds * count / len(batch.rows))
            forecast_due = False
        values = importance_statistics(joint, q, samples, chunk=batch_size, monitor=monitor)
        for name in DENSITY_METRICS:
            values[name] += batch.log_det
        return {name: values[name] for name in METRICS}

    with torch.no_grad():
        return map_batches(
            count,
            chunk or default_chunk(split.images.device),
            compute,
            monitor=monitor,
            task=f"log-likelihood of {split.name}",
            setting="evaluation.chunk",
            samples=first_block,
        )


def log_likelihood(
    model: LatentModel, x: Tensor, c: Tensor | None = None, samples: int = 5000, *, seed: int = 0
) -> Tensor:
    """Importance-weighted log p(x | c) of preprocessed images x [B, C, H, W]: [B] nats (float64).

    Arguments:
        model: in evaluation mode.
        x: images as the model sees them; adding a transform's log|det| is left to the caller.
        c: one-hot labels [B, classes] for a conditional model.
        samples: K.
        seed: of the noise; image i's noise depends on (seed, i) alone.

    Raises InputError for a model without a posterior q(z | x).
    """
    if not isinstance(model, LatentModel):
        raise InputError(
            "importance sampling needs a posterior q(z|x), but an adversarial model has none: estimate its "
            "log-likelihood by vaerun-eval run=DIR evaluation.ais=true"
        )
    size = max(1, default_chunk(x.device) // min(NOISE_BLOCK, check_samples(samples)))
    values = []
    with torch.no_grad():
        for start in range(0, len(x), size):
            part = x[start : start + size]
            noise = ImageNoise(seed, range(start, start + len(part)), model.latent_dim, model.mean)
            joint = model.joint(part, None if c is None else c[start : start + size], noise)
            values.append(importance_statistics(joint, model.infer(joint), samples)["log_likelihood"])
    return torch.cat(values)
