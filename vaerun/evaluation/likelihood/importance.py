"""Importance-weighted log-likelihood: log p(x) ~ logsumexp_K log w - log K, log w = log p(x, z) - log q(z | x), z ~ q.

A lower bound of log p(x) in expectation for every K, tight as K grows (Burda et al. 2016, theorem 1). The posterior is
inferred once per image; the samples are drawn in blocks of fixed size, each from its own position of (seed, image,
block), and joined by a running logaddexp, so that neither the chunk size nor the other images change a result.

Two numbers say how far an image's estimate can be trusted. The effective sample size (sum w)^2 / sum w^2, from 1 to K,
is how many equal weights would have its variance; it sees only the weights that were drawn. Pareto k-hat (pareto.py) is
how heavy their tail is: above 0.7 rare large weights that were not drawn may carry what is missing.
"""

from __future__ import annotations

import math
from time import perf_counter

import torch
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.distributions import LatentDistribution
from vaerun.errors import InputError
from vaerun.evaluation.likelihood.pareto import keep_largest, pareto_k, tail_length
from vaerun.evaluation.oom import map_batches
from vaerun.models import Joint, LatentModel
from vaerun.randomness import ImageNoise
from vaerun.tracking.monitor import SILENT, Monitor

NOISE_BLOCK = 500  # samples per block of noise
METRICS = ("log_likelihood", "elbo", "kl", "reconstruction", "effective_sample_size", "pareto_k")
DENSITY_METRICS = ("log_likelihood", "elbo", "reconstruction")  # those that a transform's log|det| belongs to
PARETO_K_LIMIT = 0.7  # of k-hat (Vehtari et al. 2024, section 3.2.4)
ROUNDING_EPS = 8  # in units of eps (|log p(x | z)| + D); log-weights of exact posteriors spread over up to 3 in float32


def default_chunk(device: torch.device) -> int:
    """Latent samples evaluated at once: on a CPU as many as its caches hold, on a GPU as many as keep it busy."""
    return 4_000 if device.type == "cpu" else 100_000


def importance_statistics(
    joint: Joint, q: LatentDistribution, samples: int, *, chunk: int | None = None, monitor: Monitor = SILENT
) -> dict[str, Tensor]:
    """Per image [B]: importance-weighted log-likelihood, ELBO and its two terms (nats), effective sample size, k-hat.

    All from the same samples of q, `chunk` latent samples at a time (None: by device), of which only the largest
    weights are kept. k-hat is as pareto.pareto_k says: NaN where K <= 20, -inf where the weights are equal up to the
    rounding of log p(x | z), as with an exact posterior.
    """
    accumulator = torch.float32 if joint.x.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    log_sum = torch.full((len(joint.x),), -math.inf, device=joint.x.device, dtype=accumulator)
    log_squares, largest = log_sum, log_sum.new_empty(0, len(log_sum))
    kl, reconstruction = torch.zeros_like(log_sum), torch.zeros_like(log_sum)
    piece = max(1, (chunk or default_chunk(joint.x.device)) // len(joint.x))
    for block, start in enumerate(range(0, samples, NOISE_BLOCK)):
        for noise in joint.noise(f"importance/{block}", NOISE_BLOCK)[: min(NOISE_BLOCK, samples - start)].split(piece):
            monitor.check()
            z, log_q = q.transform(noise)
            log_likelihood, log_prior = joint.log_likelihood(z).to(accumulator), joint.prior.log_prob(z).to(accumulator)
            log_w = log_likelihood + log_prior - log_q
            log_sum = torch.logaddexp(log_sum, torch.logsumexp(log_w, 0))
            log_squares = torch.logaddexp(log_squares, torch.logsumexp(2 * log_w, 0))
            largest = keep_largest(largest, log_w, tail_length(samples) + 1)
            kl += (log_q - log_prior).sum(0)
            reconstruction += log_likelihood.sum(0)
    # About one nat a pixel is summed up, even where the sum comes out near zero.
    size = (reconstruction / samples).abs() + joint.x[0].numel()
    rounding = ROUNDING_EPS * torch.finfo(joint.x.dtype).eps * size
    return {
        "log_likelihood": log_sum - math.log(samples),
        "elbo": (reconstruction - kl) / samples,
        "kl": kl / samples,
        "reconstruction": reconstruction / samples,
        "effective_sample_size": torch.exp(2 * log_sum - log_squares),
        "pareto_k": pareto_k(largest, samples, rounding),
    }


def unreliable_share(pareto_k: Tensor) -> float:
    """Share of images whose k-hat [N] is above 0.7, in [0, 1], of those that have one; NaN where none has (K <= 20)."""
    judged = pareto_k[~pareto_k.isnan()]
    return float((judged > PARETO_K_LIMIT).double().mean()) if len(judged) else math.nan


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
    monitor: Monitor = SILENT,
) -> dict[str, Tensor]:
    """Evaluate a model on a split.

    Arguments:
        model: in evaluation mode.
        split: on which images; densities include the transform's log|det|.
        samples: K.
        seed: of the noise.
        images: only the first so many; None: all.
        chunk: latent samples evaluated at once (memory grows with it); None: by device.
        monitor: checked between blocks of samples, advanced by images, warned where memory ran out and `chunk` was
            halved. Its forecast comes before the first image is done, from one block of samples of the first images;
            there is none where that block is all there is to do.

    Returns per image [N] (float64, CPU): log_likelihood (K samples), elbo, kl, reconstruction in nats (means over the
    same samples; kl is the Monte Carlo estimate); effective_sample_size, in samples; pareto_k, see
    importance_statistics.
    """
    check_samples(samples)
    count = len(split) if images is None else min(images, len(split))
    few = min(NOISE_BLOCK, samples)
    forecast_due = monitor.wants_forecast

    def work(start: int, end: int, at_once: int) -> dict[str, Tensor]:
        nonlocal forecast_due
        batch = split.batch(start, end)
        noise = ImageNoise(seed, batch.rows.tolist(), model.latent_dim, model.mean)
        joint = model.joint(batch.x, batch.c if model.classes else None, noise)
        started = perf_counter()
        q = model.infer(joint)
        if forecast_due and (few < samples or len(batch.rows) < count):  # else it would be all of it, twice
            inferred = perf_counter()
            float(
                importance_statistics(joint, q, few, chunk=at_once, monitor=monitor)["elbo"][0]
            )  # waits for the device
            a_batch = (inferred - started) + (perf_counter() - inferred) * samples / few
            monitor.forecast(a_batch * count / len(batch.rows))
            forecast_due = False
        values = importance_statistics(joint, q, samples, chunk=at_once, monitor=monitor)
        for name in DENSITY_METRICS:
            values[name] += batch.log_det
        return {name: values[name] for name in METRICS}

    with torch.no_grad():
        return map_batches(
            count,
            chunk or default_chunk(split.images.device),
            work,
            monitor=monitor,
            what=f"log-likelihood of {split.name}",
            setting="evaluation.chunk",
            samples=few,
        )


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

    Raises InputError for a model without a posterior q(z | x).
    """
    if not isinstance(model, LatentModel):
        raise InputError(
            "importance sampling needs a posterior q(z|x), and an adversarial model has none: vaerun-eval run=DIR "
            "evaluation.ais=true gives its log-likelihood"
        )
    size = max(1, default_chunk(x.device) // min(NOISE_BLOCK, check_samples(samples)))
    found = []
    with torch.no_grad():
        for start in range(0, len(x), size):
            part = x[start : start + size]
            noise = ImageNoise(seed, range(start, start + len(part)), model.latent_dim, model.mean)
            joint = model.joint(part, None if c is None else c[start : start + size], noise)
            found.append(importance_statistics(joint, model.infer(joint), samples)["log_likelihood"])
    return torch.cat(found)
