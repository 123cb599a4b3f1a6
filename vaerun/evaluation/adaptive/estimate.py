"""Importance sampling with a mixture per image as the proposal, for the rounds of adaptation and the final estimate."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from vaerun.evaluation.adaptive.mixture import Mixture, wide_dtype
from vaerun.evaluation.adaptive.mode_search import LogDensity
from vaerun.evaluation.likelihood.importance import NOISE_BLOCK, ROUNDING_EPS
from vaerun.evaluation.likelihood.pareto import keep_largest, pareto_k, tail_length
from vaerun.tracking.monitor import SILENT, Monitor


class Noise(Protocol):
    """A source of standard normal noise [k, B, d + EXTRA_NOISE]; `stream` names its purpose."""

    def __call__(self, stream: str, k: int) -> Tensor: ...
    def select(self, rows: Tensor) -> Noise: ...


def log_density(target: LogDensity, z: Tensor, chunk: int, monitor: Monitor = SILENT) -> Tensor:
    """log f of z [B, K, d]: [B, K] nats, -inf where it is not a number; about `chunk` samples at once."""
    dtype = wide_dtype(z.device)
    parts = []
    for part in z.split(max(1, chunk // len(z)), 1):
        monitor.check()
        parts.append(target.log_prob(part.transpose(0, 1).contiguous()).T.to(dtype))
    # No weight where the density cannot be evaluated, as for samples so far out that a decoder overflows.
    return torch.cat(parts, 1).nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)


def rounding(log_f: Tensor, log_w: Tensor, dtype: torch.dtype) -> Tensor:
    """Nats by which equal log-weights may differ if computed in `dtype`, [B], from those of the samples [B, K]."""
    value = log_f.gather(1, log_w.argmax(1, keepdim=True))[:, 0]
    return ROUNDING_EPS * torch.finfo(dtype).eps * value.abs().nan_to_num(posinf=0)


def estimate(
    target: LogDensity,
    proposal: Mixture,
    noise: Noise,
    samples: int,
    *,
    exact: Tensor | None = None,
    chunk: int,
    monitor: Monitor = SILENT,
) -> dict[str, Tensor]:
    """Importance sampling with the proposal: log_likelihood, effective_sample_size and pareto_k per image [B].

    Arguments:
        target, proposal, noise: of the batch.
        samples: K.
        exact: samples of the posterior, [B, d], if x was drawn from the model: then also `upper`, the log of the mean
            weight of these and the K others, an upper bound of log p(x) in expectation (Sobolev & Vetrov 2019).
        chunk: samples evaluated at once.
        monitor: checked between chunks.
    """
    images = len(proposal.weight)
    log_sum = torch.full((images,), -math.inf, device=proposal.weight.device, dtype=proposal.weight.dtype)
    log_squares, largest, round_off = log_sum, log_sum.new_empty(0, images), torch.zeros_like(log_sum)
    for block, start in enumerate(range(0, samples, NOISE_BLOCK)):
        part = noise(f"amis/estimate/{block}", NOISE_BLOCK)[: min(NOISE_BLOCK, samples - start)]
        z = proposal.sample(part.transpose(0, 1))
        log_f = log_density(target, z, chunk, monitor)
        log_w = log_f - proposal.log_prob(z)
        round_off = torch.maximum(round_off, rounding(log_f, log_w, z.dtype))
        log_sum = torch.logaddexp(log_sum, torch.logsumexp(log_w, 1))
        log_squares = torch.logaddexp(log_squares, torch.logsumexp(2 * log_w, 1))
        largest = keep_largest(largest, log_w.T, tail_length(samples) + 1)
    usable = log_sum > -math.inf
    values = {
        "log_likelihood": log_sum - math.log(samples),
        "effective_sample_size": torch.exp(2 * log_sum - log_squares).nan_to_num(nan=0),
        "pareto_k": torch.where(usable, pareto_k(largest, samples, round_off).to(log_sum), math.inf),
    }
    if exact is not None:
        z = exact.unsqueeze(1)
        log_w = (log_density(target, z, chunk, monitor) - proposal.log_prob(z))[:, 0]
        values["upper"] = torch.logaddexp(log_sum, log_w) - math.log(samples + 1)
    return values
