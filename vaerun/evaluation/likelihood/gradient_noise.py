"""How noisy an estimator's gradient is: variance and signal-to-noise ratio over draws of z on one fixed batch.

With g [P] the gradient of the batch mean of the surrogate, for a group of P parameters, over N independent draws:

    variance = 1/P sum_p Var(g_p),    norm = |E g|,    SNR = mean_p |E g_p| / sqrt(Var(g_p))

(Rainforth et al. 2018, section 3, whose SNR is that of one coordinate), with the sample's moments in place of the true
ones, so norm and SNR do not fall to zero where E g = 0: there the SNR comes out as about sqrt(2 / (pi N)).

The moments are Welford's (1962), in float64. His n-th increment of the sum of squares, n >= 2, is the square of a
contrast of the draws with mean zero and the variance of one draw: the N - 1 increments average to the variance, are
uncorrelated for normal gradients, and their spread gives its standard error. A few copies of the gradient are held.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vaerun.errors import InputError
from vaerun.estimators import Estimator
from vaerun.estimators.base import estimate
from vaerun.models import LatentModel
from vaerun.randomness import derive_seed
from vaerun.tracking.monitor import SILENT, Monitor


@dataclass(frozen=True)
class GradientNoise:
    """What N draws of a gradient say about one group of parameters; in squared nats or nats per unit of parameter.

    Attributes:
        variance: mean over parameters of the variance over draws.
        variance_error: its standard error.
        norm: of the mean gradient.
        snr: mean over parameters of |mean| / standard deviation; those whose gradient is always zero are left out. inf
            where one has a gradient without noise, NaN where all are left out.
        parameters: P.
        draws: N.
    """

    variance: float
    variance_error: float
    norm: float
    snr: float
    parameters: int
    draws: int


class RunningMoments:
    """Running mean and sum of squares of vectors [P] (Welford 1962)."""

    def __init__(self, like: Tensor) -> None:
        self.mean, self.squares = torch.zeros_like(like), torch.zeros_like(like)
        self.increments: list[float] = []

    def add(self, value: Tensor) -> None:
        """Take one more vector [P] in."""
        delta = value - self.mean
        self.mean += delta / (len(self.increments) + 1)
        squares = delta * (value - self.mean)
        self.squares += squares
        self.increments.append(float(squares.sum()))

    def noise(self) -> GradientNoise:
        """The summary of at least three vectors."""
        n, p = len(self.increments), len(self.mean)
        contrasts = torch.tensor(self.increments[1:], dtype=torch.float64) / p
        spread = (self.squares / (n - 1)).sqrt()
        used = (spread > 0) | (self.mean != 0)
        return GradientNoise(
            float(contrasts.mean()),
            float(contrasts.std()) / math.sqrt(n - 1),
            float(self.mean.norm()),
            float((self.mean.abs() / spread)[used].mean()),
            p,
            n,
        )


def parameter_groups(model: LatentModel) -> dict[str, list[nn.Parameter]]:
    """All parameters: `encoder` (those of the inference) and `decoder` (the rest); a group without any is left out."""
    own = {id(p) for p in model.inference.parameters()}
    split = {
        "decoder": [p for p in model.parameters() if id(p) not in own],
        "encoder": list(model.inference.parameters()),
    }
    return {name: parameters for name, parameters in split.items() if parameters}


@contextmanager
def _training_mode(model: nn.Module) -> Iterator[None]:
    """Gradients and training mode on for all of the model; flags, modes, buffers and torch's generators put back."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    buffers = [(b, b.clone()) for b in model.buffers()]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices), torch.enable_grad():
        try:
            model.train().requires_grad_(True)
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            for module, mode in modes:
                module.training = mode
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def _measure(
    model: LatentModel,
    x: Tensor,
    c: Tensor | None,
    estimator: Estimator,
    samples: int,
    draws: int,
    seed: int,
    warm_up: int,
    monitor: Monitor,
) -> dict[str, GradientNoise]:
    if isinstance(estimator, nn.Module):
        estimator = copy.deepcopy(estimator).train()  # the caller's keeps its state
    parts = parameter_groups(model)
    parameters = [p for group in parts.values() for p in group]
    sizes = [sum(p.numel() for p in group) for group in parts.values()]
    moments: list[RunningMoments] = []
    for draw in range(-warm_up, draws):
        monitor.check()
        torch.manual_seed(derive_seed(seed, "gradient", draw))
        surrogate = estimate(estimator, model.infer, model.joint(x, c), samples).surrogate.mean()
        if draw < 0:
            continue
        gradients = torch.autograd.grad(surrogate, parameters, allow_unused=True, materialize_grads=True)
        wide = torch.float32 if x.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        flat = torch.cat([g.detach().flatten().to(wide) for g in gradients]).split(sizes)
        moments = moments or [RunningMoments(part) for part in flat]
        for moment, part in zip(moments, flat, strict=True):
            moment.add(part)
    return {name: moment.noise() for name, moment in zip(parts, moments, strict=True)}


def gradient_noise(
    model: LatentModel,
    x: Tensor,
    c: Tensor | None,
    estimators: Mapping[str, Estimator],
    *,
    samples: int,
    draws: int,
    seed: int,
    warm_up: int = 20,
    monitor: Monitor = SILENT,
) -> dict[str, dict[str, GradientNoise] | str]:
    """Noise of estimators' gradients on one batch, the same noise for all of them at the same draw.

    Arguments:
        model: it comes back as it was; every parameter is measured, also one that training holds fixed.
        x, c: [B, C, H, W] as the model sees it, and one-hot labels [B, classes] or None.
        estimators: by name. One with a state (a running mean) is copied and learns on its own draws.
        samples: K of each.
        draws: N, at least 3.
        seed: of the draws.
        warm_up: draws before those that count, for what an estimator has to learn.
        monitor: checked before every draw, advanced by 1 after each estimator.

    Returns for each estimator its `decoder` and `encoder` noise (a group without parameters is left out), or the reason
    why it refused this model or these samples.

    Raises InputError for fewer than three draws, no samples, or a negative warm-up.
    """
    for name, value, least in (("samples", samples, 1), ("draws", draws, 3), ("warm_up", warm_up, 0)):
        if value < least:
            raise InputError(f"evaluation.noise.{name} must be at least {least}, got {value}")
    found: dict[str, dict[str, GradientNoise] | str] = {}
    with _training_mode(model):
        for name, estimator in estimators.items():
            try:
                found[name] = _measure(model, x, c, estimator, samples, draws, seed, warm_up, monitor)
            except InputError as reason:
                found[name] = str(reason)
            monitor.advance(1)
    return found


def format_table(found: Mapping[str, Mapping[str, GradientNoise] | str]) -> str:
    """One line for each estimator and group with every number named; a refusal is a line with its reason."""
    lines = []
    width = max((len(name) for name in found), default=0)
    for name, result in found.items():
        if isinstance(result, str):
            lines.append(f"{name:{width}}  refused: {result}")
            continue
        for group, noise in result.items():
            lines.append(
                f"{name:{width}}  {group}  variance {noise.variance:.3e} ± {noise.variance_error:.1e}  "
                f"norm of mean {noise.norm:.3e}  signal-to-noise {noise.snr:.3g}  "
                f"({noise.parameters} parameters, {noise.draws} draws)"
            )
    return "\n".join(lines)
