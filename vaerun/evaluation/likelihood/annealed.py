"""Annealed importance sampling (Neal 2001; Wu et al. 2017) and bidirectional Monte Carlo (Grosse et al. 2015).

The path from the prior f_0 = p(z | c) to f_T = p(z | c) p(x | z, c) is f_t = p(z | c) p(x | z, c)^beta_t. A chain
starts at an exact sample z_0 of the prior; z_t is drawn from z_{t-1} by a kernel that leaves f_t invariant, t = 1 ...
T-1. With

    log w = sum_{t=1}^T (beta_t - beta_{t-1}) log p(x | z_{t-1}, c),    E[w] = p(x | c)    (Neal 2001, section 2),

so by Jensen's inequality the log of the mean of w over chains is a lower bound of log p(x | c) in expectation, for any
T and any number of chains.

The reverse run starts at an exact sample z_{T-1} of the posterior and draws z_{t-1} from z_t by the reversal of kernel
t (for HMC the kernel itself), with the same log w. Then E[1/w] = 1/p(x | c), and minus the log of the mean of 1/w is an
upper bound in expectation (Grosse et al. 2015, "Sandwiching the marginal likelihood"). Averaging over chains is valid
although all chains of an image start at one posterior sample: E[1/w] holds for each of them, and Jensen's inequality
does not require independence. No exact posterior sample of a real image is known; for an image drawn from the model, z
~ p(z | c) and then x ~ p(x | z, c), z is one.

Both directions need kernels fixed beforehand: a step size adapted to its own chain's acceptance leaves no density
invariant. Step sizes therefore come from a pilot run with separate noise, which sees x only, and stay fixed afterwards.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from vaerun.data.dataset import Split
from vaerun.errors import InputError
from vaerun.evaluation.likelihood.hmc import LOG_UNIFORM, Target, transition, transition_noise
from vaerun.evaluation.likelihood.importance import default_chunk, effective_sample_size
from vaerun.evaluation.oom import map_batches
from vaerun.models import Joint, LatentModel
from vaerun.nets.init import check_integer
from vaerun.randomness import ImageNoise, derive_seed
from vaerun.tracking.monitor import SILENT, Monitor

SHARPNESS = 4.0  # slope of the sigmoidal schedule (Grosse et al. 2015)
PILOT_CHAINS = 4  # an acceptance averaged over 4 chains has a standard error of about 0.15, and the log step size too
PILOT_SEARCH = 30  # extra transitions at the first temperature: enough to change the step size by a factor of 10^4
PILOT_TRANSITIONS = 200  # minimum over all temperatures: if these are few, several transitions at each
PILOT_GAIN = 1.0  # change of the log step size per unit of missing acceptance
PILOT_GRID = 0.1  # grid of log step sizes: rounding to it keeps rounding errors from being fed back and growing


def _check_range(key: str, value: Any, upper: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < upper:
        range_ = "a number above 0" if upper == math.inf else f"a number between 0 and {upper:g}"
        raise InputError(f"evaluation.annealing.{key} must be {range_}, got {value}")


@dataclass(frozen=True)
class Annealing:
    """Settings of annealed importance sampling.

    For the same number of gradients, many temperatures with short trajectories beat few with long ones: on pPCA (MNIST,
    d = 16) the mean absolute error was 0.12 nats with 2500 x 2 leapfrog steps and 0.53 with 500 x 10.

    Attributes:
        temperatures: T, the number of increments from beta = 0 to beta = 1, with T - 1 transitions between them.
        chains: K per image.
        leapfrog_steps: per transition.
        step_size: of the leapfrog integrator; the pilot run's initial value if `adapt`.
        acceptance: the pilot run's target acceptance.
        adapt: tune the step size to each image and temperature; otherwise it is `step_size` throughout.

    Raises InputError, naming the key, for a value out of range.
    """

    temperatures: int = 2500
    chains: int = 16
    leapfrog_steps: int = 2
    step_size: float = 0.1
    acceptance: float = 0.8
    adapt: bool = True

    def __post_init__(self) -> None:
        for key in ("temperatures", "chains", "leapfrog_steps"):
            check_integer(f"evaluation.annealing.{key}", getattr(self, key), 1)
        _check_range("step_size", self.step_size, math.inf)
        _check_range("acceptance", self.acceptance, 1)
        if not isinstance(self.adapt, bool):
            raise InputError(f"evaluation.annealing.adapt must be true or false, got {self.adapt}")

    @property
    def betas(self) -> list[float]:
        """beta_0 = 0 < ... < beta_T = 1, sigmoidal: dense at both ends (Wu et al. 2017)."""
        count = self.temperatures + 1
        s = torch.linspace(-SHARPNESS, SHARPNESS, count, dtype=torch.float64, device="cpu").sigmoid()
        return ((s - s[0]) / (s[-1] - s[0])).tolist()


def sample_prior(joint: Joint, noise: ImageNoise, stream: str, chains: int) -> Tensor:
    """Exact samples z ~ p(z | c), [K, B, d]."""
    return joint.prior.transform(noise(f"{stream}/start", chains)[..., :-LOG_UNIFORM])[0]


def tune_step_sizes(joint: Joint, noise: ImageNoise, annealing: Annealing, monitor: Monitor = SILENT) -> Tensor:
    """Step sizes [T - 1, B] for each transition and image, from a pilot run that starts at the prior.

    After each transition, log step size += gain (acceptance - target), with the acceptance averaged over the pilot's
    chains. The result depends on x and the pilot's noise only, not on anything that the reported runs draw.
    """
    temperatures = annealing.betas[1:-1]
    log_step = torch.full((len(joint.x),), math.log(annealing.step_size), dtype=noise.dtype, device=noise.device)
    log_steps = log_step.repeat(len(temperatures), 1)
    if not annealing.adapt or not temperatures:
        return log_steps.exp()
    repeats = math.ceil(PILOT_TRANSITIONS / len(temperatures))
    transition_noises = transition_noise(noise, "pilot", PILOT_CHAINS, PILOT_SEARCH + repeats * len(temperatures))
    target = Target(joint)
    state = target(sample_prior(joint, noise, "pilot", PILOT_CHAINS))
    for t, beta in enumerate(temperatures):
        tried = []
        for _ in range(repeats if t else PILOT_SEARCH + repeats):
            monitor.check()
            tried.append((log_step / PILOT_GRID).round() * PILOT_GRID)
            step_size = tried[-1].exp()
            state, acceptance = transition(
                target, state, next(transition_noises), beta, step_size, annealing.leapfrog_steps
            )
            log_step = log_step + PILOT_GAIN * (acceptance.mean(0) - annealing.acceptance)
        log_steps[t] = torch.stack(tried[-math.ceil(repeats / 2) :]).mean(0)  # the first half is burn-in
    return log_steps.exp()


def anneal(
    joint: Joint,
    noise: ImageNoise,
    annealing: Annealing,
    step_sizes: Tensor,
    posterior: Tensor | None = None,
    monitor: Monitor = SILENT,
) -> tuple[Tensor, Tensor]:
    """log w [K, B] (nats, float64) and the mean acceptance [B] of one run, forward or reverse.

    Arguments:
        joint: log p(x, z | c) of a batch.
        noise: of these images, d + LOG_UNIFORM numbers each.
        annealing: the settings.
        step_sizes: [T - 1, B], from tune_step_sizes.
        posterior: None for a forward run from the prior; an exact posterior sample [B, d] for a reverse run from it.
        monitor: checked before each transition.
    """
    chains, temperatures = annealing.chains, annealing.betas[1:-1]
    increments = [b - a for a, b in pairwise(annealing.betas)]
    if posterior is None:
        stream, start = "forward", sample_prior(joint, noise, "forward", chains)
    else:
        stream, start = "reverse", posterior.expand(chains, -1, -1)
        increments, temperatures, step_sizes = increments[::-1], temperatures[::-1], step_sizes.flip(0)
    accumulator = torch.float32 if start.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    target = Target(joint)
    state = target(start)
    log_weight = increments[0] * state.log_likelihood.to(accumulator)
    acceptance = torch.zeros(len(joint.x), dtype=accumulator, device=start.device)
    noises = transition_noise(noise, stream, chains, len(temperatures))
    for increment, beta, step_size, step_noise in zip(increments[1:], temperatures, step_sizes, noises, strict=True):
        monitor.check()
        state, accepted = transition(target, state, step_noise, beta, step_size, annealing.leapfrog_steps)
        log_weight += increment * state.log_likelihood.to(accumulator)
        acceptance += accepted.mean(0)
    return log_weight, acceptance / len(temperatures) if temperatures else torch.ones_like(acceptance)


def log_mean_exp(values: Tensor) -> Tensor:
    """log of the mean of exp over the first dimension: [K, B] -> [B]."""
    return torch.logsumexp(values, 0) - math.log(len(values))


def _batch_size(images: int | None, batch: int | None, annealing: Annealing, device: torch.device) -> int:
    for key, value in (("evaluation.images", images), ("batch", batch)):
        if value is not None:
            check_integer(key, value, 1)
    return batch or max(1, default_chunk(device) // annealing.chains)


def annealing_noise(model: LatentModel, seed: int, images: list[int]) -> ImageNoise:
    """The noise of these images' chains: d + LOG_UNIFORM numbers per draw."""
    return ImageNoise(derive_seed(seed, "annealing"), images, model.latent_dim + LOG_UNIFORM, model.mean)


def annealed_importance_sampling(
    model: LatentModel,
    split: Split,
    annealing: Annealing,
    *,
    seed: int,
    images: int | Sequence[int] | None = None,
    batch: int | None = None,
    monitor: Monitor = SILENT,
) -> dict[str, Tensor]:
    """A lower bound of log p(x | c) in expectation that needs no inference network.

    Arguments:
        model: in evaluation mode.
        split: images to evaluate; densities include the transform's log|det|.
        annealing: the settings.
        seed: of the noise; an image's noise depends on (seed, image) only.
        images: number of images to evaluate, starting with the first, or their numbers; None: all.
        batch: images per batch (memory grows with it times the chains); None: by device. It changes rounding only,
            though many long trajectories may amplify that into another draw of the same estimate.
        monitor: checked between transitions, advanced by images, warned if memory runs out and `batch` is halved.

    Returns per image [N] (float64, CPU): ais (nats: log of the mean of w over chains), ais_ess (effective number of
    chains, 1 to K), ais_acceptance (mean over chains and transitions; 1 where T = 1 leaves nothing to accept).
    """

    def compute(start: int, end: int, batch_size: int) -> dict[str, Tensor]:
        part = split.batch(start, end) if rows is None else split.select(rows[start:end])
        joint = model.joint(part.x, part.c if model.classes else None)
        noise = annealing_noise(model, seed, part.rows.tolist())
        step_sizes = tune_step_sizes(joint, noise, annealing, monitor)
        log_weight, acceptance = anneal(joint, noise, annealing, step_sizes, monitor=monitor)
        ais = log_mean_exp(log_weight) + part.log_det
        return {"ais": ais, "ais_ess": effective_sample_size(log_weight), "ais_acceptance": acceptance}

    rows = images if isinstance(images, Sequence) else None
    number = None if isinstance(images, Sequence) else images
    count = len(split if rows is None else rows) if number is None else min(number, len(split))
    size = _batch_size(number, batch, annealing, split.images.device)
    task, setting = f"annealed importance sampling of {split.name}", "evaluation.annealing.chains"
    with torch.no_grad():
        return map_batches(count, size, compute, monitor=monitor, task=task, setting=setting)


def simulate(model: LatentModel, images: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Draw images from the model: x [B, C, H, W], z [B, d], c [B, classes] or None.

    Image i depends on (seed, i) only; its label is i modulo the number of classes.
    """
    with torch.no_grad():
        labels = torch.tensor(images, device=model.mean.device)
        c = F.one_hot(labels % model.classes, model.classes).to(model.mean.dtype) if model.classes else None
        joint = model.joint(model.mean.expand(len(images), *model.image_shape), c)
        noise = ImageNoise(derive_seed(seed, "simulated"), images, model.latent_dim, model.mean)
        z = joint.prior.transform(noise("latent", 1)[0])[0]
        # torch.distributions can only draw from the global generator: seed the CPU's and restore it.
        likelihood, eta = cast(Any, copy.deepcopy(model.likelihood).cpu()), joint.decode(z).cpu()
        pixels = []
        with torch.random.fork_rng(devices=[]):
            for row, image in enumerate(images):
                torch.random.default_generator.manual_seed(derive_seed(seed, "simulated", "pixels", image))
                pixels.append(likelihood.distribution(eta[row]).sample())
    return torch.stack(pixels).to(z.device), z, c


def bidirectional(
    model: LatentModel,
    annealing: Annealing,
    *,
    images: int,
    seed: int,
    batch: int | None = None,
    monitor: Monitor = SILENT,
) -> dict[str, Tensor]:
    """Lower and upper bounds of log p(x | c) on images drawn from the model (Grosse et al. 2015; Wu et al. 2017).

    The gap bounds the mean error of the lower bound on simulated images; for real images it is evidence, not proof.

    Arguments:
        model: in evaluation mode.
        annealing: the settings; both directions use the same step sizes.
        images: number of images to draw; the labels of a conditional model cycle through the classes.
        seed, batch, monitor: see annealed_importance_sampling.

    Returns per image [N] (float64, CPU): bdmc_lower and bdmc_upper (nats, of x as the model sees it), and the mean
    acceptance of each direction, bdmc_acceptance_forward and bdmc_acceptance_reverse. Means over images satisfy
    lower <= log p(x | c) <= upper in expectation.
    """

    def compute(start: int, end: int, batch_size: int) -> dict[str, Tensor]:
        indices = list(range(start, end))
        x, z, c = simulate(model, indices, seed)
        joint, noise = model.joint(x, c), annealing_noise(model, seed, indices)
        step_sizes = tune_step_sizes(joint, noise, annealing, monitor)
        forward, forward_acceptance = anneal(joint, noise, annealing, step_sizes, monitor=monitor)
        reverse, reverse_acceptance = anneal(joint, noise, annealing, step_sizes, posterior=z, monitor=monitor)
        return {
            "bdmc_lower": log_mean_exp(forward),
            "bdmc_upper": -log_mean_exp(-reverse),
            "bdmc_acceptance_forward": forward_acceptance,
            "bdmc_acceptance_reverse": reverse_acceptance,
        }

    size = _batch_size(images, batch, annealing, model.mean.device)
    task, setting = "bidirectional Monte Carlo", "evaluation.annealing.chains"
    with torch.no_grad():
        return map_batches(images, size, compute, monitor=monitor, task=task, setting=setting)
