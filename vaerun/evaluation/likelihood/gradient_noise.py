"""How noisy an estimator's gradient is: variance and signal-to-noise ratio over draws of z on one fixed batch.

With g [P] the gradient of the batch mean of the surrogate, for a group of P parameters, over N independent draws:

    variance = 1/P sum_p Var(g_p),    norm = |E g|,    SNR = mean_p |E g_p| / sqrt(Var(g_p))

(Rainforth et al. 2018, section 3, whose SNR is that of one coordinate), with sample moments in place of the true ones,
so norm and SNR do not vanish where E g = 0: there the SNR is about sqrt(2 / (pi N)).

The moments are accumulated by Welford's algorithm (1962), in float64. Its n-th increment of the sum of squares, n >= 2,
is the square of a contrast of the draws with mean zero and the variance of one draw: the N - 1 increments average to
the variance, are uncorrelated for normal gradients, and their spread gives its standard error. Memory holds a few
copies of the gradient.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
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
    """Noise of a gradient over N draws, for one group of parameters; (squared) nats per unit of parameter.

    Attributes:
        variance: mean over parameters of the variance over draws.
        variance_error: its standard error.
        norm: of the mean gradient.
        snr: mean over parameters of |mean| / standard deviation, without those whose gradient is always zero. inf where
            a gradient has no noise, NaN if all gradients are zero.
        parameters: P, their number.
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
        """Add one vector [P]."""
        delta = value - self.mean
        self.mean += delta / (len(self.increments) + 1)
        squares = delta * (value - self.mean)
        self.squares += squares
        self.increments.append(float(squares.sum()))

    def noise(self) -> GradientNoise:
        """Summarise three or more vectors."""
        n, p = len(self.increments), len(self.mean)
        contrasts = torch.tensor(self.increments[1:], dtype=torch.float64, device="cpu") / p
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
    """All parameters as `encoder` (those of the inference) and `decoder` (the rest), without empty groups."""
    encoder = {id(p) for p in model.inference.parameters()}
    groups = {
        "decoder": [p for p in model.parameters() if id(p) not in encoder],
        "encoder": list(model.inference.parameters()),
    }
    return {name: parameters for name, parameters in groups.items() if parameters}


@contextmanager
def _training_mode(model: nn.Module) -> Iterator[None]:
    """Training mode and gradients for the whole model; restores flags, modes, buffers and torch's generators."""
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
    model: LatentModel, surrogate: Callable[[], Tensor], draws: int, seed: int, warm_up: int, monitor: Monitor
) -> dict[str, GradientNoise]:
    """Noise of the gradient of `surrogate()`, a scalar that draws from torch's generators, by parameter group."""
    groups = parameter_groups(model)
    parameters = [p for group in groups.values() for p in group]
    sizes = [sum(p.numel() for p in group) for group in groups.values()]
    moments: list[RunningMoments] = []
    for draw in range(-warm_up, draws):
        monitor.check()
        torch.manual_seed(derive_seed(seed, "gradient", draw))
        value = surrogate()
        if draw < 0:
            continue
        gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        wide = torch.float32 if value.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        vectors = torch.cat([g.detach().flatten().to(wide) for g in gradients]).split(sizes)
        moments = moments or [RunningMoments(vector) for vector in vectors]
        for moment, vector in zip(moments, vectors, strict=True):
            moment.add(vector)
    return {name: moment.noise() for name, moment in zip(groups, moments, strict=True)}


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
    """Gradient noise of several estimators on one batch; all use the same random numbers at the same draw.

    Arguments:
        model: returned unchanged; every parameter is measured, including those that training keeps fixed.
        x, c: [B, C, H, W] as the model sees it, and one-hot labels [B, classes] or None.
        estimators: by name. An estimator with a state (a running mean) is copied and learns from its own draws.
        samples: K of each.
        draws: N, at least 3.
        seed: of the draws.
        warm_up: initial draws that are not measured, for estimators with a state.
        monitor: checked before every draw, advanced by 1 after each estimator.

    Returns for each estimator the noise of its parameter_groups, or the reason why it does not apply to this model or
    number of samples.

    Raises InputError for fewer than three draws, no samples, or a negative warm-up.
    """
    for name, value, minimum in (("samples", samples, 1), ("draws", draws, 3), ("warm_up", warm_up, 0)):
        if value < minimum:
            raise InputError(f"evaluation.noise.{name} must be at least {minimum}, got {value}")
    results: dict[str, dict[str, GradientNoise] | str] = {}
    with _training_mode(model):
        for name, estimator in estimators.items():
            if isinstance(estimator, nn.Module):
                estimator = copy.deepcopy(estimator).train()

            def surrogate(estimator: Estimator = estimator) -> Tensor:
                return estimate(estimator, model.infer, model.joint(x, c), samples).surrogate.mean()

            try:
                results[name] = _measure(model, surrogate, draws, seed, warm_up, monitor)
            except InputError as error:
                results[name] = str(error)
            monitor.advance(1)
    return results


def format_table(results: Mapping[str, Mapping[str, GradientNoise] | str]) -> str:
    """One line per estimator and group with every number named, or the reason why the estimator does not apply."""
    lines = []
    width = max((len(name) for name in results), default=0)
    for name, result in results.items():
        if isinstance(result, str):
            lines.append(f"{name:{width}}  not applicable: {result}")
            continue
        for group, noise in result.items():
            lines.append(
                f"{name:{width}}  {group}  variance {noise.variance:.3e} ± {noise.variance_error:.1e}  "
                f"norm of mean {noise.norm:.3e}  signal-to-noise {noise.snr:.3g}  "
                f"({noise.parameters} parameters, {noise.draws} draws)"
            )
    return "\n".join(lines)
