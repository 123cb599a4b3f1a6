"""Inference gaps: the difference between log p(x) and the ELBO, and its causes (Cremer et al. 2018, eqs. 2 and 3).

    log p(x) - ELBO[q] = (log p(x) - ELBO[q*]) + (ELBO[q*] - ELBO[q]),

the approximation gap (the family does not contain the posterior) and the amortisation gap (the inference network misses
the family's best member). q* is the same family with local parameters for each image (`local_parameters()`; networks
inside a distribution stay shared and count as part of the family), found by optimal_posterior.py.

Where the posterior has several modes the ELBO has several local optima, and q may sit on the wrong one. Given settings
of the mode search, there are therefore two searches: from q, and from the member of the family that is centred at the
posterior's best mode (`at_mode()`; mode_search.py). q* is the better of the two ends, chosen with separate noise so
that the reported ELBO is not biased by the choice; a difference below SAME_OPTIMUM leaves it to the search from q. A
family without `at_mode()` is searched from q alone, which leaves ELBO(q*) too low where q is on the wrong mode: the
amortisation gap is then too small, and the approximation gap too large if log p(x) knows of the better mode.

log p(x) is that of adaptive importance sampling (amis.py) where the caller has it, otherwise the importance-weighted
estimate with q* as the proposal, which is closer to the posterior than q but sees none of the modes that q* leaves out
(its k-hat cannot tell). That one and the ELBOs use the same noise, which neither the searches nor the choice between
them have seen, so their differences have little noise. Estimates of log p(x) are lower bounds: too few samples or
missed modes make the gaps too small, and a search that has not converged makes the approximation gap too large.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.errors import InputError
from vaerun.evaluation.adaptive.adaptation import Amis
from vaerun.evaluation.adaptive.amis import samples_per_image
from vaerun.evaluation.adaptive.model_modes import amis_noise, model_modes
from vaerun.evaluation.likelihood.importance import default_chunk, importance_statistics
from vaerun.evaluation.likelihood.optimal_posterior import (
    OptimalPosterior,
    Refinement,
    elbo,
    optimise_posterior,
)
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
CHOICE_SAMPLES = 1_000  # to choose between the two ends
SAME_OPTIMUM = 0.1  # nats: ends that differ by less are those of one optimum, up to the searches' tolerance and noise
LATENTS_PER_STEP = 4_000  # latent samples per step over all images of a batch, whose autograd graph is in memory


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
    size = max(1, chunk // samples_per_image(model.latent_dim))
    means, factors = [], []
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        noise = ImageNoise(seed, rows[part], model.latent_dim, model.mean)
        joint = model.joint(x[part], None if c is None else c[part], noise)
        modes = model_modes(model, joint, amis_noise(model, rows[part], seed), amis, chunk=chunk, monitor=monitor)
        means.append(modes.mean[:, 0])
        factors.append(modes.cholesky[:, 0])
    return torch.cat(means), torch.cat(factors)


def _is_better(joint: Joint, from_q: OptimalPosterior, from_mode: OptimalPosterior) -> Tensor:
    """Whether the search from the mode ended higher, [B] bool, by noise of its own."""
    noise = joint.noise("gap/choice", CHOICE_SAMPLES)
    value, other = elbo(joint, from_q.q, noise), elbo(joint, from_mode.q, noise)
    return (other > value + SAME_OPTIMUM) | (value.isnan() & other.isfinite())


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
                    better = _is_better(joint, optimum, other)
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
