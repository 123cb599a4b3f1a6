"""Importance-weighted log-likelihood: log p(x) ~ logsumexp_K log w - log K, log w = log p(x, z) - log q(z | x), z ~ q.

A lower bound of log p(x) in expectation for every K, tight as K grows (Burda et al. 2016, theorem 1). The posterior is
inferred once per image; the samples are drawn in blocks of fixed size, each from its own position of (seed, image,
block), and joined by a running logaddexp, so that neither the chunk size nor the other images change a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.errors import InputError
from vaerun.models import Joint, LatentModel
from vaerun.randomness import ImageNoise
from vaerun.training.signals import Stop

BLOCK = 500  # samples per block of noise
NAMES = ("log_likelihood", "elbo", "kl", "reconstruction")


def default_chunk(device: torch.device) -> int:
    """Latent samples evaluated at once: on a CPU as many as its caches hold, on a GPU as many as keep it busy."""
    return 4_000 if device.type == "cpu" else 100_000


def weigh(model: LatentModel, joint: Joint, samples: int, stop: Stop | None = None) -> dict[str, Tensor]:
    """Per image [B], nats: importance-weighted log-likelihood; ELBO and its two terms from the same samples."""
    q = model.infer(joint)
    accumulator = torch.float32 if joint.x.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    log_sum = torch.full((len(joint.x),), -math.inf, device=joint.x.device, dtype=accumulator)
    kl, reconstruction = torch.zeros_like(log_sum), torch.zeros_like(log_sum)
    for block, start in enumerate(range(0, samples, BLOCK)):
        if stop is not None:
            stop.check()
        noise = joint.noise(f"importance/{block}", BLOCK)[: min(BLOCK, samples - start)]
        z, log_q = q.transform(noise)
        log_likelihood, log_prior = joint.log_likelihood(z).to(accumulator), joint.prior.log_prob(z).to(accumulator)
        log_sum = torch.logaddexp(log_sum, torch.logsumexp(log_likelihood + log_prior - log_q, 0))
        kl += (log_q - log_prior).sum(0)
        reconstruction += log_likelihood.sum(0)
    return {
        "log_likelihood": log_sum - math.log(samples),
        "elbo": (reconstruction - kl) / samples,
        "kl": kl / samples,
        "reconstruction": reconstruction / samples,
    }


def check_samples(samples: int) -> int:
    """K as it is; raises InputError unless it is at least 1."""
    if samples < 1:
        raise InputError(f"evaluation.samples must be at least 1, got {samples}")
    return samples


def importance_sampling(
    model: LatentModel,
    split: Split,
    *,
    samples: int,
    seed: int,
    images: int | None = None,
    chunk: int | None = None,
    stop: Stop | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Evaluate a model on a split.

    Arguments:
        model: in evaluation mode.
        split: on which images; densities include the transform's log|det|.
        samples: K.
        seed: of the noise.
        images: only the first so many; None: all.
        chunk: latent samples evaluated at once (memory grows with it); None: by device.
        stop: looked at between blocks of samples.
        progress: called with the number of images done.

    Returns per image [N] (float64, CPU, nats): log_likelihood (K samples), elbo, kl, reconstruction (means over the
    same samples; kl is the Monte Carlo estimate).
    """
    check_samples(samples)
    size = max(1, (chunk or default_chunk(split.images.device)) // min(BLOCK, samples))
    found: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    with torch.no_grad():
        for batch in split.batches(size, images):
            noise = ImageNoise(seed, batch.rows.tolist(), model.latent_dim, model.mean)
            values = weigh(model, model.joint(batch.x, batch.c if model.classes else None, noise), samples, stop)
            values["log_likelihood"] += batch.log_det
            values["elbo"] += batch.log_det
            values["reconstruction"] += batch.log_det
            for name in NAMES:
                found[name].append(values[name].cpu().double())
            if progress is not None:
                progress(len(batch.rows))
    return {name: torch.cat(parts) for name, parts in found.items()}


def log_likelihood(
    model: LatentModel, x: Tensor, c: Tensor | None = None, samples: int = 5000, *, seed: int = 0
) -> Tensor:
    """Importance-weighted log p(x | c) of images as the model sees them: x [B, C, H, W] -> [B] nats (float64).

    Arguments:
        model: the model.
        x: in the model's own units (a transform's log|det| is the caller's to add).
        c: one-hot labels [B, classes] for a conditional model.
        samples: K.
        seed: of the noise; image i's noise depends on (seed, i) alone.
    """
    size = max(1, default_chunk(x.device) // min(BLOCK, check_samples(samples)))
    found = []
    with torch.no_grad():
        for start in range(0, len(x), size):
            part = x[start : start + size]
            noise = ImageNoise(seed, range(start, start + len(part)), model.latent_dim, model.mean)
            joint = model.joint(part, None if c is None else c[start : start + size], noise)
            found.append(weigh(model, joint, samples)["log_likelihood"])
    return torch.cat(found)
