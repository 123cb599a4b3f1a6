"""How estimates of log p(x) grow with the number K of samples: from the prior, from q, and from AMIS's proposal.

All are log(1/K sum_k p(x, z_k) / r(z_k)), z_k ~ r, and differ in r only. With r = p(z) the weight is p(x | z)
(simple Monte Carlo): a standard normal hardly ever hits the small region where p(x | z) is not negligible, so that the
estimate is far too low for any K that can be afforded. Each is a lower bound of log p(x) in expectation that rises with
K (Burda et al. 2016, theorem 1); repeats with other noise show its spread, given x, q and AMIS's proposal.

Estimates of a repeat are nested: the one at K uses its first K samples, so one pass yields the curve. Costs are counted
in evaluations of log p(x, z): a gradient counts as 3 (forward and backward), a linearisation in d dimensions as 1 + d,
and a step of the mode search as 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.errors import InputError
from vaerun.evaluation.adaptive.adaptation import Amis, adapt_proposal
from vaerun.evaluation.adaptive.amis import MAX_LATENT_DIM
from vaerun.evaluation.adaptive.estimate import log_density
from vaerun.evaluation.adaptive.mixture import wide_dtype
from vaerun.evaluation.adaptive.model_modes import MATRIX_SHARE, amis_noise, model_modes
from vaerun.evaluation.likelihood.annealed import PILOT_CHAINS, PILOT_SEARCH, PILOT_TRANSITIONS, Annealing
from vaerun.evaluation.likelihood.importance import batch_joint, default_chunk
from vaerun.evaluation.likelihood.optimal_posterior import log_weights
from vaerun.evaluation.oom import map_batches
from vaerun.models import Joint, LatentModel, Linearisation
from vaerun.nets.init import check_integer
from vaerun.randomness import ImageNoise, derive_seed
from vaerun.tracking.monitor import SILENT, Monitor

NOISE_BLOCK = 500  # samples per block of noise: part of the noise streams, so it must not change
GRADIENT_COST = 3
LogWeights = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Estimates:
    """Settings of the estimates against K.

    Attributes:
        samples: the largest K.
        repeats: with other noise.

    Raises InputError, naming the key, for a value out of range.
    """

    samples: int = 20_000
    repeats: int = 10

    def __post_init__(self) -> None:
        for key in ("samples", "repeats"):
            check_integer(f"evaluation.estimate.{key}", getattr(self, key), 1)

    @property
    def sizes(self) -> list[int]:
        """The K of the estimates: 1, 2, 5, 10, 20, ... and `samples`."""
        ladder = [digit * 10**power for power in range(len(str(self.samples))) for digit in (1, 2, 5)]
        return [*(size for size in ladder if size < self.samples), self.samples]


def check_estimates(model: LatentModel) -> None:
    """Raise InputError for a model without a density, or with too many latent dimensions for AMIS."""
    if not model.has_density:
        raise InputError(
            "evaluation.estimates needs a likelihood, and a plain autoencoder (model=ae) has none: omit it"
        )
    if model.latent_dim > MAX_LATENT_DIM:
        raise InputError(
            f"evaluation.estimates includes AMIS, which supports up to {MAX_LATENT_DIM} latent dimensions, and this "
            f"model has {model.latent_dim}: omit it"
        )


class CountedDensity:
    """A log-density that counts the cost of its evaluations per image, in `cost` [B], which its selections share."""

    def __init__(self, density: Any, cost: Tensor, rows: Tensor) -> None:
        self._density, self.cost, self._rows = density, cost, rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._density, name)

    def _count(self, cost: int) -> None:
        self.cost.index_add_(0, self._rows, torch.full_like(self._rows, cost))

    def select(self, rows: Tensor) -> CountedDensity:
        return CountedDensity(self._density.select(rows), self.cost, self._rows[rows])

    def log_prob(self, z: Tensor) -> Tensor:
        self._count(len(z))
        return self._density.log_prob(z)

    def log_ratio(self, z: Tensor, mu: Tensor) -> Tensor:
        self._count(2)
        return self._density.log_ratio(z, mu)

    def linearise(self, mu: Tensor) -> Linearisation:
        self._count(1 + mu.shape[-1])
        return self._density.linearise(mu)


def annealing_cost(annealing: Annealing) -> int:
    """Evaluations of log p(x, z) per image of annealed importance sampling, its pilot run included."""
    transitions = annealing.temperatures - 1
    gradients = annealing.chains * (1 + transitions * annealing.leapfrog_steps)
    if annealing.adapt and transitions:
        pilot = PILOT_SEARCH + transitions * math.ceil(PILOT_TRANSITIONS / transitions)
        gradients += PILOT_CHAINS * (1 + pilot * annealing.leapfrog_steps)
    return GRADIENT_COST * gradients


def nested_estimates(
    weights: LogWeights, noise: ImageNoise, stream: str, sizes: list[int], monitor: Monitor = SILENT
) -> Tensor:
    """log(1/K sum_k w_k) of the first K samples for each K of `sizes`, increasing: [B, len(sizes)] nats.

    Arguments:
        weights: noise [k, B, n] -> log w [k, B].
        noise: of the images; block b of NOISE_BLOCK samples is noise(f"{stream}/{b}", NOISE_BLOCK).
        stream, sizes: see above.
        monitor: checked before each block.
    """
    estimates: list[Tensor] = []
    log_sum: Tensor | float = -math.inf
    for start in range(0, sizes[-1], NOISE_BLOCK):
        monitor.check()
        end = min(start + NOISE_BLOCK, sizes[-1])
        log_w = weights(noise(f"{stream}/{start // NOISE_BLOCK}", NOISE_BLOCK)[: end - start])
        before = torch.as_tensor(log_sum, dtype=log_w.dtype, device=log_w.device)
        for size in sizes[len(estimates) :]:
            if size > end:
                break
            so_far = torch.logaddexp(before, torch.logsumexp(log_w[: size - start], 0))
            estimates.append(so_far - math.log(size))
        log_sum = torch.logaddexp(before, torch.logsumexp(log_w, 0))
    return torch.stack(estimates, -1)


def _by_parts(weights: LogWeights, rows: int) -> LogWeights:
    """The same, for `rows` samples of each image at once."""
    return lambda noise: torch.cat([weights(part) for part in noise.split(rows)])


def _weights_of_batch(
    model: LatentModel,
    joint: Joint,
    images: list[int],
    amis: Amis,
    seed: int,
    *,
    posterior: bool,
    chunk: int,
    monitor: Monitor,
) -> tuple[dict[str, LogWeights], Tensor]:
    """The log-weights by method as functions of noise, and the cost of AMIS's adaptation per image, [B]."""
    wide = wide_dtype(joint.x.device)
    rows = torch.arange(len(images), device=joint.x.device)
    counted = CountedDensity(joint, torch.zeros_like(rows), rows)
    noise = amis_noise(model, images, seed)
    modes = model_modes(
        model, joint, noise, amis, posterior_start=posterior, target=counted, chunk=chunk, monitor=monitor
    )
    modes = modes.select(rows, int(modes.count.max()))
    proposal, _, _ = adapt_proposal(counted, modes, noise, amis, chunk=chunk, monitor=monitor)

    def prior(noise: Tensor) -> Tensor:
        return joint.log_likelihood(joint.prior.transform(noise)[0]).to(wide)

    def adapted(noise: Tensor) -> Tensor:
        z = proposal.sample(noise.transpose(0, 1))
        return (log_density(joint, z, chunk, monitor) - proposal.log_prob(z)).T

    methods: dict[str, LogWeights] = {"prior": prior, "amis": adapted}
    if posterior:
        q = model.infer(joint)
        methods["posterior"] = lambda noise: log_weights(joint, q, noise)
    parts = max(1, chunk // len(images))
    return {name: _by_parts(weights, parts) for name, weights in methods.items()}, counted.cost


STREAMS = {"prior": "prior", "posterior": "importance", "amis": "amis/estimate"}
"""Streams of noise by method. In the first repeat, q's samples are those of importance_sampling."""


def estimates_by_samples(
    model: LatentModel,
    split: Split,
    estimates: Estimates,
    amis: Amis,
    *,
    seed: int,
    images: int | None = None,
    posterior: bool = True,
    chunk: int | None = None,
    monitor: Monitor = SILENT,
) -> dict[str, Tensor]:
    """Estimates of log p(x | c) by simple Monte Carlo, importance sampling and AMIS for a number of sample sizes.

    Arguments:
        model: in evaluation mode.
        split: images to evaluate; densities include the transform's log|det|.
        estimates: the settings.
        amis: settings of AMIS, whose `samples` is not used. The proposal is adapted once; repeats draw new samples.
        seed: of the noise; an image's noise depends on (seed, image, repeat) only.
        images: number of images to evaluate, starting with the first; None: all.
        posterior: whether the model has a q to sample from, and to start AMIS from.
        chunk: latent samples evaluated at once (memory grows with it); None: default_chunk.
        monitor: checked between chunks, advanced by images, warned if memory runs out and `chunk` is halved.

    Returns per image (float64, CPU): prior, posterior (unless left out) and amis, [N, repeats,
    len(estimates.sizes)] nats; amis_cost [N], the cost of the adaptation in evaluations of log p(x, z).

    Raises InputError for a model that has no density, or too many latent dimensions.
    """
    check_estimates(model)
    d = model.latent_dim

    def compute(start: int, end: int, batch_size: int) -> dict[str, Tensor]:
        batch = split.batch(start, end)
        rows = batch.rows.tolist()
        joint = batch_joint(model, batch, seed)
        methods, cost = _weights_of_batch(
            model, joint, rows, amis, seed, posterior=posterior, chunk=batch_size, monitor=monitor
        )
        values = {}
        for name, weights in methods.items():
            curves = []
            for repeat in range(estimates.repeats):
                own = derive_seed(seed, "repeat", repeat) if repeat else seed
                noise = amis_noise(model, rows, own) if name == "amis" else ImageNoise(own, rows, d, model.mean)
                curves.append(nested_estimates(weights, noise, STREAMS[name], estimates.sizes, monitor))
            values[name] = torch.stack(curves, 1) + batch.log_det[:, None, None]
        return values | {"amis_cost": cost.double()}

    count = len(split) if images is None else min(images, len(split))
    with torch.no_grad():
        return map_batches(
            count,
            chunk or default_chunk(split.images.device),
            compute,
            monitor=monitor,
            task=f"estimates against K of {split.name}",
            setting="evaluation.chunk",
            samples=max(NOISE_BLOCK, d**2 // MATRIX_SHARE),
        )
