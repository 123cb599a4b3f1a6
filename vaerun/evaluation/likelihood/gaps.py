"""Inference gaps: what is lost between log p(x) and the ELBO, and to what (Cremer, Li & Duvenaud 2018, eq. 2 and 3).

    log p(x) - ELBO[q] = (log p(x) - ELBO[q*]) + (ELBO[q*] - ELBO[q]),

the approximation gap (the family cannot hold the posterior) and the amortisation gap (the inference does not find the
family's best member). q* is the same family with local parameters for each image (`local_parameters()`; networks
inside a distribution stay shared and count as the family), found by Adam on that image's ELBO from q on, the model held
fixed. A Gaussian's gradient is that of `stl`, whose noise vanishes as q* nears the posterior.

Every `window` steps an image's ELBO is judged on noise of its own, the same at each judging. Kept are the last
parameters within `tolerance` of the best value: the very best have fitted that noise. Where `patience` windows together
gain no more than `tolerance` the search goes back to those kept with a tenth of the learning rate; where that happens
at the smallest rate, the image has converged and leaves the batch. No decision looks at another image.

log p(x) is the importance-weighted estimate with q* as the proposal, which is nearer to the posterior than q (its own
k-hat says how far to trust it). It and both ELBOs come from the same noise, which neither search nor judging has seen,
so the noise in their differences is small. K samples bound log p(x) from below: too few make the approximation gap too
small; a search that has not converged makes it too large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.distributions import LatentDistribution
from vaerun.errors import InputError
from vaerun.evaluation.likelihood.adam import PerImageAdam
from vaerun.evaluation.likelihood.importance import default_chunk, importance_statistics
from vaerun.evaluation.oom import map_batches
from vaerun.models import Joint, LatentModel
from vaerun.randomness import ImageNoise
from vaerun.tracking.monitor import SILENT, Monitor

METRICS = (
    "elbo",
    "elbo_optimal",
    "log_likelihood",
    "gap_approximation",
    "gap_amortisation",
    "gap_inference",
    "gap_pareto_k",
)
LEARNING_RATE_CUTS = 2  # times that the learning rate falls to a tenth before a search may end
LATENTS_PER_STEP = 4_000  # samples of one step, over all images at a time: their graph is kept
VALIDATION_SAMPLES = (
    200  # samples of the fixed noise: their error in a difference of close q is about the default tolerance
)


@dataclass(frozen=True)
class Refinement:
    """How q is optimised for each image.

    Attributes:
        samples: Monte Carlo samples a step.
        learning_rate: Adam's at the start; 1/10 and 1/100 of it follow.
        window: steps between two judgements.
        tolerance: nats; what counts as progress. A Gaussian q* comes about as near to its best; for a flow a longer
            search was seen to gain some 0.05 nats more.
        patience: windows without progress before the learning rate falls, or the search ends.
        max_steps: end of the search for an image that has not converged.

    Raises InputError for a value that cannot be used.
    """

    samples: int = 8
    learning_rate: float = 0.01
    window: int = 50
    tolerance: float = 0.01
    patience: int = 2
    max_steps: int = 5000

    def __post_init__(self) -> None:
        for name in ("samples", "window", "patience", "max_steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"evaluation.gap.{name} must be a whole number of at least 1, got {value}")
        for name in ("learning_rate", "tolerance"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise InputError(f"evaluation.gap.{name} must be a number above 0, got {value}")


def log_weights(joint: Joint, q: LatentDistribution, noise: Tensor, held: bool = False) -> Tensor:
    """log w = log p(x, z) - log q(z | x) at noise [K, B, d]: [K, B] nats; `held`: log q with its parameters held."""
    z, log_q = q.transform(noise)
    if held:
        log_q = q.detach().log_prob(z)
    wide = torch.float32 if z.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    return joint.log_likelihood(z).to(wide) + joint.prior.log_prob(z).to(wide) - log_q


def split_noise(noise: Tensor) -> tuple[Tensor, ...]:
    """Noise [K, B, d] in pieces along K of a size that suits the device."""
    return noise.split(max(1, default_chunk(noise.device) // noise.shape[1]))


@dataclass(frozen=True)
class OptimalPosterior:
    """q* with batch shape [B], the steps that it took [B], and whether the search has converged, [B] bool."""

    q: LatentDistribution
    steps: Tensor
    converged: Tensor


def optimise_posterior(
    model: LatentModel,
    x: Tensor,
    c: Tensor | None,
    rows: Tensor,
    refinement: Refinement,
    *,
    seed: int,
    monitor: Monitor = SILENT,
) -> OptimalPosterior:
    """The member of q's own family with the largest ELBO, for each image.

    Arguments:
        model: in evaluation mode.
        x, c: images [B, C, H, W] and one-hot labels [B, classes] or None.
        rows: numbers of the images within their split, [B]: their noise depends on nothing else.
        refinement: how.
        seed: of the noise.
        monitor: checked before every step.
    """

    def restricted(active: Tensor) -> tuple[Joint, LatentDistribution]:
        noise = ImageNoise(seed, rows[active.cpu()].tolist(), model.latent_dim, model.mean)
        joint = model.joint(x[active], None if c is None else c[active], noise)
        return joint.detach(), model.infer(joint)

    def judged(joint: Joint, q: LatentDistribution, noise: Tensor) -> Tensor:
        return torch.cat([log_weights(joint, q, part) for part in split_noise(noise)]).mean(0)

    window, samples = refinement.window, refinement.samples
    with torch.no_grad():
        active = torch.arange(len(x), device=x.device)
        joint, q = restricted(active)
        if not q.has_rsample:
            raise InputError(f"evaluation.gap needs z as a function of noise, which {type(q).__name__} does not give")
        judging = joint.noise("gap/judging", VALIDATION_SAMPLES)
        value = judged(joint, q, judging)
        reached, mark = value.clone(), value.clone()  # the best so far; the same when progress was last seen
        kept, build_kept = q.local_parameters()
        leaves, build = q.local_parameters()
        adam = PerImageAdam(leaves, torch.full_like(x[:, 0, 0, 0], refinement.learning_rate))
        stalled, cuts, steps = (torch.zeros_like(active) for _ in range(3))
        converged = torch.zeros_like(active, dtype=torch.bool)
        for start in range(0, refinement.max_steps, window):
            block = joint.noise(f"gap/search/{start // window}", window * samples).unflatten(0, (window, samples))
            for noise in block[: refinement.max_steps - start]:
                monitor.check()
                with torch.enable_grad():
                    log_w = log_weights(joint, build(), noise, held=q.exact_moments)
                    gradients = torch.autograd.grad(log_w.mean(0).sum(), leaves)  # a sum: each image's is its own
                adam.step(gradients)
            steps[active] = min(start + window, refinement.max_steps)

            value = judged(joint, build(), judging[:, active])
            good = value > reached[active] - refinement.tolerance
            reached[active[good]] = torch.maximum(reached[active[good]], value[good])
            for row, leaf in zip(kept, leaves, strict=True):
                row[active[good]] = leaf[good]
            progress = reached[active] > mark[active] + refinement.tolerance
            stalled[active] = torch.where(progress, 0, stalled[active] + 1)
            stuck = stalled[active] >= refinement.patience
            mark[active] = torch.where(progress | stuck, reached[active], mark[active])
            done, cut = stuck & (cuts[active] == LEARNING_RATE_CUTS), stuck & (cuts[active] < LEARNING_RATE_CUTS)
            converged[active[done]] = value[done].isfinite()
            cuts[active[cut]] += 1
            stalled[active[cut]] = 0
            adam.restart(cut, [row[active[cut]] for row in kept])
            if done.any():
                active = active[~done]
                if not len(active):
                    break
                joint, q = restricted(active)
                leaves, build = q.local_parameters()
                adam.select(~done, leaves)
        return OptimalPosterior(build_kept().detach(), steps, converged)


def _compare(
    joint: Joint,
    q: LatentDistribution,
    optimum: LatentDistribution,
    samples: int,
    elbo_samples: int,
    monitor: Monitor,
) -> dict[str, Tensor]:
    """Per image [B], all from one noise, which is what importance_sampling uses.

    `elbo`, `elbo_optimal`, `log_likelihood` (K = samples) in nats, `gap_pareto_k` (of q*).
    """
    optimal = importance_statistics(joint, optimum, samples, monitor=monitor)
    of_optimum = (
        optimal if elbo_samples == samples else importance_statistics(joint, optimum, elbo_samples, monitor=monitor)
    )
    return {
        "elbo": importance_statistics(joint, q, elbo_samples, monitor=monitor)["elbo"],
        "elbo_optimal": of_optimum["elbo"],
        "log_likelihood": optimal["log_likelihood"],
        "gap_pareto_k": optimal["pareto_k"],
    }


def unconverged_share(gap_converged: Tensor) -> float:
    """Share of images [N] whose search has ended at max_steps, in [0, 1]."""
    return 1 - float(gap_converged.double().mean())


def inference_gaps(
    model: LatentModel,
    split: Split,
    refinement: Refinement,
    *,
    importance_samples: int,
    elbo_samples: int,
    seed: int,
    images: int | None = None,
    batch: int | None = None,
    monitor: Monitor = SILENT,
) -> dict[str, Tensor]:
    """Approximation and amortisation gap of each image.

    Arguments:
        model: in evaluation mode.
        split: on which images; densities include the transform's log|det|.
        refinement: how q* is found.
        importance_samples: K of log p(x), with q* as the proposal.
        elbo_samples: of both ELBOs.
        seed: of the noise.
        images: only the first so many; None: all.
        batch: images at a time (memory grows with it), which changes no result beyond rounding; None: by samples.
        monitor: checked before every step, advanced by images, warned where memory ran out and `batch` was halved.

    Returns per image [N] (CPU; float64, nats): elbo (of q), elbo_optimal (of q*), log_likelihood, gap_approximation,
    gap_amortisation, gap_inference (their sum); gap_steps (a number); gap_converged (bool).

    Raises InputError for numbers of samples below 1, and for a model without a posterior.
    """
    for name, value in (("importance_samples", importance_samples), ("elbo_samples", elbo_samples)):
        if value < 1:
            raise InputError(f"evaluation.gap.{name} must be at least 1, got {value}")

    def work(start: int, end: int, at_once: int) -> dict[str, Tensor]:
        part = split.batch(start, end)
        c, noise = part.c if model.classes else None, ImageNoise(seed, part.rows.tolist(), model.latent_dim, model.mean)
        optimum = optimise_posterior(model, part.x, c, part.rows, refinement, seed=seed, monitor=monitor)
        with torch.no_grad():
            joint = model.joint(part.x, c, noise)
            values = _compare(joint, model.infer(joint), optimum.q, importance_samples, elbo_samples, monitor)
        values["gap_approximation"] = values["log_likelihood"] - values["elbo_optimal"]
        values["gap_amortisation"] = values["elbo_optimal"] - values["elbo"]
        values["gap_inference"] = values["log_likelihood"] - values["elbo"]
        for name in ("elbo", "elbo_optimal", "log_likelihood"):
            values[name] += part.log_det
        return {name: values[name] for name in METRICS} | {
            "gap_steps": optimum.steps.double(),
            "gap_converged": optimum.converged,
        }

    count = len(split) if images is None else min(images, len(split))
    size, what = batch or max(1, LATENTS_PER_STEP // refinement.samples), f"inference gaps of {split.name}"
    return map_batches(count, size, work, monitor=monitor, what=what, setting="evaluation.gap.samples")
