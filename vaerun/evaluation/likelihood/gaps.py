"""Inference gaps: the difference between log p(x) and the ELBO, and its causes (Cremer et al. 2018, eqs. 2 and 3).

    log p(x) - ELBO[q] = (log p(x) - ELBO[q*]) + (ELBO[q*] - ELBO[q]),

the approximation gap (the family does not contain the posterior) and the amortisation gap (the inference network misses
the family's best member). q* is the same family with local parameters for each image (`local_parameters()`; networks
inside a distribution stay shared and count as part of the family), optimised by Adam on that image's ELBO, with the
model fixed. The ELBO has several local optima where the posterior has several modes, and q may sit on the wrong one.
With settings of the mode search there are therefore two searches: from q, and from the member of the family centred at
the posterior's best mode (`at_mode()`; mode_search.py). q* is the better of the two ends, by separate noise so that the
reported ELBO is not biased by the choice; a difference below the tolerance leaves it to the search from q. A family
without `at_mode()` is searched from q alone, which leaves ELBO(q*) too low where q is on the wrong mode: the
amortisation gap is then too small and, beside a log p(x) that knows all modes, the approximation gap too large.

A Gaussian's gradient is that of `stl`, whose noise vanishes as q* approaches the posterior.

Every `window` steps an image's ELBO is validated on fixed noise that the search does not see. The search retains the
latest parameters within `tolerance` of the best value, because the best ones have overfitted that noise. If
`patience` windows together gain no more than `tolerance`, it returns to the retained parameters with a tenth of the
learning rate; if that happens at the smallest rate, the image has converged and leaves the batch. Images do not affect
each other.

log p(x) is that of adaptive importance sampling (amis.py) where the caller has it, otherwise the importance-weighted
estimate with q* as the proposal, which is closer to the posterior than q but sees none of the modes that q* leaves out
(its k-hat cannot tell). That one and the ELBOs use the same noise, which neither the searches nor the choice between
them have seen, so their differences have little noise. Estimates of log p(x) are lower bounds: too few samples or
missed modes make the gaps too small, and a search that has not converged makes the approximation gap too large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.distributions import LatentDistribution
from vaerun.errors import InputError
from vaerun.evaluation.likelihood.adam import PerImageAdam
from vaerun.evaluation.likelihood.adaptation import Amis
from vaerun.evaluation.likelihood.importance import default_chunk, importance_statistics
from vaerun.evaluation.likelihood.model_modes import MATRIX_SHARE, amis_noise, model_modes
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
SEARCH_METRICS = ("elbo_optimal_from_q", "elbo_optimal_from_mode", "gap_from_mode", "gap_steps", "gap_converged")
LEARNING_RATE_CUTS = 2  # reductions of the learning rate, to a tenth each, before a search may end
CHOICE_SAMPLES = 1_000  # to choose between the two ends
LATENTS_PER_STEP = 4_000  # latent samples per step over all images of a batch, whose autograd graph is in memory
VALIDATION_SAMPLES = 200  # their error in a difference of similar q is about the default tolerance


@dataclass(frozen=True)
class Refinement:
    """Settings of the search for q*.

    Attributes:
        samples: Monte Carlo samples per step.
        learning_rate: Adam's initial learning rate, followed by 1/10 and 1/100 of it.
        window: steps between two validations.
        tolerance: nats; the smallest gain that counts as progress. A Gaussian q* comes about as close to its optimum;
            with flows, longer searches gained about 0.05 nats more.
        patience: windows without progress before the learning rate falls or the search ends.
        max_steps: steps after which the search ends for an image that has not converged.

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
                raise InputError(f"evaluation.gap.{name} must be an integer of at least 1, got {value}")
        for name in ("learning_rate", "tolerance"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise InputError(f"evaluation.gap.{name} must be a number above 0, got {value}")


def log_weights(joint: Joint, q: LatentDistribution, noise: Tensor, detached: bool = False) -> Tensor:
    """log w = log p(x, z) - log q(z | x) at noise [K, B, d]: [K, B] nats.

    With `detached`, the parameters of q are constants in log q.
    """
    z, log_q = q.transform(noise)
    if detached:
        log_q = q.detach().log_prob(z)
    wide = torch.float32 if z.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    return joint.log_likelihood(z).to(wide) + joint.prior.log_prob(z).to(wide) - log_q


def split_noise(noise: Tensor) -> tuple[Tensor, ...]:
    """Split noise [K, B, d] along K into chunks that suit the device."""
    return noise.split(max(1, default_chunk(noise.device) // noise.shape[1]))


def elbo(joint: Joint, q: LatentDistribution, noise: Tensor) -> Tensor:
    """The ELBO at noise [K, B, d]: [B] nats."""
    return torch.cat([log_weights(joint, q, part) for part in split_noise(noise)]).mean(0)


@dataclass(frozen=True)
class OptimalPosterior:
    """q* with batch shape [B], the optimisation steps taken [B], and whether the search has converged, [B] bool."""

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
    modes: tuple[Tensor, Tensor] | None = None,
    monitor: Monitor = SILENT,
) -> OptimalPosterior:
    """The member of q's family with the largest ELBO that a search from one start finds, for each image.

    Arguments:
        model: in evaluation mode.
        x, c: images [B, C, H, W] and one-hot labels [B, classes] or None.
        rows: indices of the images within their split, [B], which key their noise.
        refinement: settings of the search.
        seed: of the noise.
        modes: start at these modes [B, d], with the Cholesky factors of the precisions there [B, d, d]; None: at q.
        monitor: checked before every step.

    Raises InputError for a posterior that cannot be reparameterised.
    """

    def restricted(active: Tensor) -> tuple[Joint, LatentDistribution]:
        noise = ImageNoise(seed, rows[active.cpu()].tolist(), model.latent_dim, model.mean)
        joint = model.joint(x[active], None if c is None else c[active], noise)
        q = model.infer(joint)
        if modes is not None:
            q = cast(LatentDistribution, q.at_mode(modes[0][active], modes[1][active]))
        return joint.detach(), q

    window, samples = refinement.window, refinement.samples
    with torch.no_grad():
        active = torch.arange(len(x), device=x.device)
        joint, q = restricted(active)
        if not q.has_rsample:
            raise InputError(f"evaluation.gap needs a reparameterised posterior, which {type(q).__name__} is not")
        validation_noise = joint.noise("gap/judging", VALIDATION_SAMPLES)
        value = elbo(joint, q, validation_noise)
        best, reference = value.clone(), value.clone()  # the best so far; its value when progress was last seen
        retained, build_retained = q.local_parameters()
        leaves, build = q.local_parameters()
        adam = PerImageAdam(leaves, torch.full_like(x[:, 0, 0, 0], refinement.learning_rate))
        stalled, cuts, steps = (torch.zeros_like(active) for _ in range(3))
        converged = torch.zeros_like(active, dtype=torch.bool)
        for start in range(0, refinement.max_steps, window):
            block = joint.noise(f"gap/search/{start // window}", window * samples).unflatten(0, (window, samples))
            for noise in block[: refinement.max_steps - start]:
                monitor.check()
                with torch.enable_grad():
                    log_w = log_weights(joint, build(), noise, detached=q.exact_moments)
                    # The gradient of a sum over images: each image affects its own leaves only.
                    gradients = torch.autograd.grad(log_w.mean(0).sum(), leaves)
                adam.step(gradients)
            steps[active] = min(start + window, refinement.max_steps)

            value = elbo(joint, build(), validation_noise[:, active])
            good = value > best[active] - refinement.tolerance
            best[active[good]] = torch.maximum(best[active[good]], value[good])
            for retained_leaf, leaf in zip(retained, leaves, strict=True):
                retained_leaf[active[good]] = leaf[good]
            improved = best[active] > reference[active] + refinement.tolerance
            stalled[active] = torch.where(improved, 0, stalled[active] + 1)
            stuck = stalled[active] >= refinement.patience
            reference[active] = torch.where(improved | stuck, best[active], reference[active])
            done, cut = stuck & (cuts[active] == LEARNING_RATE_CUTS), stuck & (cuts[active] < LEARNING_RATE_CUTS)
            converged[active[done]] = value[done].isfinite()
            cuts[active[cut]] += 1
            stalled[active[cut]] = 0
            adam.restart(cut, [leaf[active[cut]] for leaf in retained])
            if done.any():
                active = active[~done]
                if not len(active):
                    break
                joint, q = restricted(active)
                leaves, build = q.local_parameters()
                adam.select(~done, leaves)
        return OptimalPosterior(build_retained().detach(), steps, converged)


def _at_optimum(
    joint: Joint, optimum: OptimalPosterior, samples: int, elbo_samples: int, monitor: Monitor
) -> dict[str, Tensor]:
    """`elbo_optimal`, `log_likelihood` (K = samples), in nats, and `gap_pareto_k` of q*, and its search: [B] each.

    All use the noise of importance_sampling.
    """
    values = importance_statistics(joint, optimum.q, samples, monitor=monitor)
    elbo = values["elbo"]
    if elbo_samples != samples:
        elbo = importance_statistics(joint, optimum.q, elbo_samples, monitor=monitor)["elbo"]
    return {
        "elbo_optimal": elbo,
        "log_likelihood": values["log_likelihood"],
        "gap_pareto_k": values["pareto_k"],
        "gap_steps": optimum.steps.double(),
        "gap_converged": optimum.converged,
    }


def best_modes(
    model: LatentModel,
    x: Tensor,
    c: Tensor | None,
    rows: list[int],
    amis: Amis,
    *,
    seed: int,
    monitor: Monitor = SILENT,
) -> tuple[Tensor, Tensor]:
    """The mode with the largest Laplace evidence that AMIS finds: [B, d], and its precision's factor [B, d, d].

    Arguments: see optimise_posterior; `amis` holds the settings of the mode search.
    """
    chunk = default_chunk(x.device)
    size = max(1, chunk // (model.latent_dim**2 // MATRIX_SHARE + 1))
    means, factors = [], []
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        noise = ImageNoise(seed, rows[part], model.latent_dim, model.mean)
        joint = model.joint(x[part], None if c is None else c[part], noise)
        modes = model_modes(model, joint, amis_noise(model, rows[part], seed), amis, chunk=chunk, monitor=monitor)
        means.append(modes.mean[:, 0])
        factors.append(modes.cholesky[:, 0])
    return torch.cat(means), torch.cat(factors)


def _is_better(joint: Joint, from_q: OptimalPosterior, from_mode: OptimalPosterior, tolerance: float) -> Tensor:
    """Whether the search from the mode ended higher, [B] bool, by noise of its own."""
    noise = joint.noise("gap/choice", CHOICE_SAMPLES)
    value, other = elbo(joint, from_q.q, noise), elbo(joint, from_mode.q, noise)
    return (other > value + tolerance) | (value.isnan() & other.isfinite())


def unconverged_share(gap_converged: Tensor) -> float:
    """Fraction of images [N] whose search ended at max_steps, in [0, 1]."""
    return 1 - float(gap_converged.double().mean())


def inference_gaps(
    model: LatentModel,
    split: Split,
    refinement: Refinement,
    *,
    importance_samples: int,
    elbo_samples: int,
    seed: int,
    amis: Amis | None = None,
    log_likelihood: Tensor | None = None,
    images: int | None = None,
    batch: int | None = None,
    monitor: Monitor = SILENT,
) -> dict[str, Tensor]:
    """Approximation and amortisation gap of each image.

    Arguments:
        model: in evaluation mode.
        split: images to evaluate; densities include the transform's log|det|.
        refinement: settings of the search for q*.
        importance_samples: K of log p(x) with q* as the proposal, and of its k-hat.
        elbo_samples: samples of each ELBO.
        seed: of the noise.
        amis: settings of the search for the modes to start from, too; None: start from q alone.
        log_likelihood: log p(x | c) of each image [N], in nats, such as that of adaptive importance sampling; None:
            importance sampling with q*.
        images: number of images to evaluate, starting with the first; None: all.
        batch: images per batch (memory grows with it), which changes no result beyond rounding; None: by samples.
        monitor: checked before every step, advanced by images, warned if memory runs out and `batch` is halved.

    Returns per image [N] (CPU; float64, nats): elbo (of q), elbo_optimal (of q*), log_likelihood, gap_approximation,
    gap_amortisation, gap_inference (their sum); gap_steps and gap_converged (bool) of the search that led to q*. If
    modes were searched, also elbo_optimal_from_q and elbo_optimal_from_mode, and gap_from_mode (1 where q* is the
    latter; else 0).

    Raises InputError for fewer than one sample, and for a posterior that cannot be reparameterised.
    """
    for name, value in (("importance_samples", importance_samples), ("elbo_samples", elbo_samples)):
        if value < 1:
            raise InputError(f"evaluation.gap.{name} must be at least 1, got {value}")

    def compute(start: int, end: int, batch_size: int) -> dict[str, Tensor]:
        part = split.batch(start, end)
        c, rows = part.c if model.classes else None, part.rows.tolist()
        joint = model.joint(part.x, c, ImageNoise(seed, rows, model.latent_dim, model.mean))

        def search(modes: tuple[Tensor, Tensor] | None = None) -> OptimalPosterior:
            return optimise_posterior(model, part.x, c, part.rows, refinement, seed=seed, modes=modes, monitor=monitor)

        optimum = search()
        with torch.no_grad():
            q = model.infer(joint)
            values = _at_optimum(joint, optimum, importance_samples, elbo_samples, monitor)
            if amis is not None:
                modes = best_modes(model, part.x, c, rows, amis, seed=seed, monitor=monitor)
                if q.at_mode(*modes) is not None:
                    other = search(modes)
                    better = _is_better(joint, optimum, other, refinement.tolerance)
                    candidates = values, _at_optimum(joint, other, importance_samples, elbo_samples, monitor)
                    values = {name: torch.where(better, candidates[1][name], candidates[0][name]) for name in values}
                    values["elbo_optimal_from_q"], values["elbo_optimal_from_mode"] = (
                        candidate["elbo_optimal"] for candidate in candidates
                    )
                    values["gap_from_mode"] = better.double()
            values["elbo"] = importance_statistics(joint, q, elbo_samples, monitor=monitor)["elbo"]
            if log_likelihood is not None:
                values["log_likelihood"] = log_likelihood[start:end].to(values["elbo"]) - part.log_det
        values["gap_approximation"] = values["log_likelihood"] - values["elbo_optimal"]
        values["gap_amortisation"] = values["elbo_optimal"] - values["elbo"]
        values["gap_inference"] = values["log_likelihood"] - values["elbo"]
        for name in values:
            if name.startswith(("elbo", "log_likelihood")):
                values[name] = values[name] + part.log_det
        return {name: values[name] for name in (*METRICS, *SEARCH_METRICS) if name in values}

    count = len(split) if images is None else min(images, len(split))
    size, task = batch or max(1, LATENTS_PER_STEP // refinement.samples), f"inference gaps of {split.name}"
    return map_batches(count, size, compute, monitor=monitor, task=task, setting="evaluation.gap.samples")
