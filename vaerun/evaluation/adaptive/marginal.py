"""log p(x) of any differentiable model, given as a function log p(x, z) of z with the data bound: adaptive importance
sampling (adaptation.py) on that function."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaerun.deprecation import silence_torch_warnings
from vaerun.errors import InputError
from vaerun.evaluation.adaptive.adaptation import Amis, adapt_proposal
from vaerun.evaluation.adaptive.bridge import final_estimate
from vaerun.evaluation.adaptive.function_density import Function, FunctionDensity
from vaerun.evaluation.adaptive.mixture import EXTRA_NOISE
from vaerun.evaluation.adaptive.mode_search import find_modes
from vaerun.evaluation.likelihood.importance import PARETO_K_LIMIT, default_chunk
from vaerun.memory import is_out_of_memory
from vaerun.nets.init import check_integer
from vaerun.randomness import ImageNoise, derive_seed

SAME = 1e-3  # relative difference up to which two evaluations at the same z count as equal: float32 sums, in any order


@dataclass(frozen=True)
class MarginalLikelihood:
    """log p(x) of B images, and how far to trust it.

    Attributes:
        log_likelihood: nats, [B]; a lower bound of log p(x) in expectation.
        standard_error: of log_likelihood, nats, [B], by the delta method, of importance sampling with these weights.
        effective_sample_size: from 1 to K, [B].
        pareto_k: of the weights; above 0.7 large ones are missing, [B].
        upper: nats, [B], an upper bound of log p(x) in expectation; None without exact posterior samples.
        samples: K: as asked for, or the number of annealed chains where the proposal was not reliable (bridge.py), [B].
        starts: mode searches, [B].
        modes: modes of the proposal, [B].
        starts_disagree: whether twice as many starts changed the evidence of the modes by more than 0.5 nats, [B] bool.
    """

    log_likelihood: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor
    pareto_k: Tensor
    upper: Tensor | None
    samples: Tensor
    starts: Tensor
    modes: Tensor
    starts_disagree: Tensor

    def __str__(self) -> str:
        count, value = len(self.log_likelihood), self.log_likelihood
        images = f"{count} image{'s' * (count != 1)}"
        error = float(self.standard_error.square().sum().sqrt()) / count
        over_images = f"; ± {float(value.std()) / math.sqrt(count):.3f} over images" if count > 1 else ""
        lines = [
            f"log p(x)  {float(value.mean()):.3f} nats, mean of {images}, lower bound in expectation",
            f"  ± {error:.3f}, its Monte Carlo standard error{over_images}",
            *self._efficiency(images),
            f"  Pareto k-hat {self._reliability(images)}",
            f"  {float(self.starts.double().mean()):.0f} mode searches per image, mean; "
            f"{float(self.modes.double().mean()):.1f} modes, mean; twice as many starts changed the modes' evidence by "
            f"more than 0.5 nats for {int(self.starts_disagree.sum())} of {images}",
        ]
        if self.upper is not None:
            lines.append(
                f"  upper bound in expectation {float(self.upper.mean()):.3f} nats, mean; bracket "
                f"{float((self.upper - value).mean()):.3f} nats wide, widest {float((self.upper - value).max()):.3f}"
            )
        return "\n".join(lines)

    def _efficiency(self, images: str) -> list[str]:
        """A line for every K."""
        lines = []
        for k in self.samples.unique(sorted=True).flip(0).tolist():
            here = self.samples == k
            lines.append(
                f"  effective sample size {float(self.effective_sample_size[here].mean()):.0f} of K = {k}, mean of "
                f"{int(here.sum())} of {images}"
            )
        return lines

    def _reliability(self, images: str) -> str:
        if bool(self.pareto_k.isnan().any()):
            return "undefined: it needs more than 20 samples"
        unreliable = (self.pareto_k > PARETO_K_LIMIT).nonzero()[:, 0].tolist()
        text = f"above {PARETO_K_LIMIT}, not reliable: {len(unreliable)} of {images}"
        if unreliable:
            text += f" (numbers {', '.join(map(str, unreliable[:10]))}{', ...' if len(unreliable) > 10 else ''})"
        return text


def _check_points(name: str, points: Any, like: Tensor | None, shape: str) -> Tensor:
    """`points`, without gradient. Raises InputError unless they are finite numbers of that shape, in `like`'s dtype."""
    if not isinstance(points, Tensor) or points.dim() != shape.count(",") + 1 or not points.is_floating_point():
        found = f"{list(points.shape)} of {points.dtype}" if isinstance(points, Tensor) else type(points).__name__
        raise InputError(f"{name} must be a floating-point tensor {shape}, got {found}")
    if not points.numel():
        raise InputError(f"{name} is empty: it has shape {list(points.shape)}")
    if like is not None and points.shape[-2:] != like.shape:
        raise InputError(f"{name} has shape {list(points.shape)}, which does not end in start's {list(like.shape)}")
    if like is not None and (points.dtype, points.device) != (like.dtype, like.device):
        raise InputError(f"{name} is {points.dtype} on {points.device}, but start is {like.dtype} on {like.device}")
    if not bool(points.isfinite().all()):
        raise InputError(f"{name} has values that are not finite")
    return points.detach()


def _call(name: str, function: Function, z: Tensor, shape: tuple[int, ...]) -> Tensor:
    """function(z), finite and of that shape. Raises InputError otherwise."""
    try:
        value = function(z)
    except Exception as error:
        raise InputError(f"{name} fails for z {list(z.shape)} of {z.dtype} on {z.device}: {error}") from error
    if not isinstance(value, Tensor) or value.shape != shape:
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{name} must map z {list(z.shape)} to a tensor {list(shape)}, got {found}")
    bad = ~value.isfinite().movedim(1, 0).flatten(1).all(1)
    if bool(bad.any()):
        raise InputError(f"{name} is not finite at a start of image {int(bad.nonzero()[0])}: choose another start")
    return value


def _check_function(target: FunctionDensity, starts: Tensor) -> None:
    """Try the function and its derivatives at starts [S, B, d]. Raises InputError, naming what is wrong."""
    images = starts.shape[1]
    with torch.no_grad():
        # One image elsewhere in a last row: values of the others must not notice. Never as many rows as images, so that
        # exchanged axes show.
        elsewhere = starts[:1].clone()
        source = torch.Generator("cpu").manual_seed(0)
        step = torch.randn(starts.shape[2], generator=source, dtype=torch.float32, device="cpu")
        elsewhere[:, 0] += 0.1 * step.to(starts)
        z = torch.cat([starts, *[elsewhere] * (1 + (len(starts) + 1 == images))])
        value = _call("log_joint", target.function, z, (len(z), images))
        alone = _call("log_joint", target.function, z[-1:].contiguous(), (1, images))[0]
        first = _call("log_joint", target.function, z[:1].contiguous(), (1, images))[0]
    if bool(((value[-1] - alone).abs() > SAME * (1 + alone.abs())).any()):
        raise InputError(
            "log_joint gives different values for the same z: put the model into evaluation mode, without random draws"
        )
    if bool(((alone - first)[1:].abs() > SAME * (1 + first[1:].abs())).any()):
        raise InputError(
            "log_joint of an image depends on the z of the others: sum over the last axis only, and put the model into "
            "evaluation mode"
        )
    try:
        gradient = target.gradient(starts)
    except RuntimeError as error:
        raise InputError(f"log_joint has no gradient with respect to z: {error}") from error
    if not bool(gradient.isfinite().all()):
        raise InputError("the gradient of log_joint is not finite at a start: choose another start")
    if target.precision is not None:
        with torch.no_grad():
            shape = (len(starts), images, target.latent_dim, target.latent_dim)
            precision = _call("precision", target.precision, starts, shape)
        if bool(torch.linalg.cholesky_ex(precision)[1].any()):
            raise InputError("precision is not positive definite at a start: leave it out, or add the prior's")
        return
    try:
        with warnings.catch_warnings():
            silence_torch_warnings()
            target.linearise(starts[0])
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"the Hessian of log_joint cannot be computed: pass precision=, such as Gauss-Newton's ({error})"
        ) from error


@contextmanager
def _failures_named() -> Iterator[None]:
    """Turns what the caller's function raises at a z of the search or of the proposal into an InputError."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if isinstance(error, InputError) or is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0][:200]
        raise InputError(
            f"log_joint fails away from the start, as the negative of a log-density would ({reason}): check its sign"
        ) from error


def marginal_likelihood(
    log_joint: Function,
    start: Tensor | Sequence[Tensor],
    *,
    samples: int = 2000,
    seed: int = 0,
    further_starts: Tensor | None = None,
    precision: Function | None = None,
    exact: Tensor | None = None,
    chunk: int | None = None,
) -> MarginalLikelihood:
    """log p(x) = log of the integral of p(x, z) over z, of any differentiable model, for each of B images.

    Modes of p(x, z) are searched from every start, a mixture at the modes is adapted, and the estimate is importance
    sampling with it (adaptation.py). A mode that nobody starts near cannot be seen: the estimate is then too low, and
    neither its standard error nor its k-hat shows it. Hence the further starts.

    Arguments:
        log_joint: z [K, B, d] -> log p(x, z) [K, B] nats, for B fixed images, all constants included; z is
            unconstrained. Deterministic, differentiable (kinks are fine), and each value depends on its own z [d] only.
        start: [B, d], such as the means of an encoder, or a list of such tensors.
        samples: K of the estimate.
        seed: of the noise; image i's depends on (seed, i) alone.
        further_starts: [n, B, d], draws of the prior. Blocks of 8, 8, 16, 32, ... are used while they are complete,
            from the third on only for images where the last one changed the evidence of the modes by more than 0.5 nats
            or left one reached only once; fewer than 16 are not compared. None: 128 draws of N(0, I), which is right
            for that prior only: pass draws of any other. Perturbations of the starts are no substitute: in an example
            with two modes, d = 2, they missed the second one for up to 80% of the images, draws of the prior never.
        precision: z [K, B, d] -> [K, B, d, d], a positive definite approximation of minus the Hessian of log_joint,
            such as Gauss-Newton's; None: the Hessian by automatic differentiation, with eigenvalues made positive.
        exact: if the images were drawn from the model, the z [B, d] that made them: gives the upper bound.
        chunk: latent samples evaluated at once (memory grows with it); None: default_chunk.

    Raises InputError for wrong shapes, values that are not finite, and a function without gradient.
    """
    check_integer("samples", samples, 1)
    if chunk is not None:
        check_integer("chunk", chunk, 1)
    listed: list[Any] = list(start) if isinstance(start, list | tuple) else [start]
    if not listed:
        raise InputError("start is empty: pass at least one tensor [B, d]")
    first = _check_points("start", listed[0], None, "[B, d]")
    starts = torch.stack([_check_points("start", other, first, "[B, d]") for other in listed])
    images, d = first.shape
    noise = ImageNoise(derive_seed(seed, "marginal"), range(images), d + EXTRA_NOISE, first)
    amis = Amis(samples=samples)
    if further_starts is not None:
        further_starts = _check_points("further_starts", further_starts, first, "[n, B, d]")
    if exact is not None:
        exact = _check_points("exact", exact, first, "[B, d]")

    def draw(begin: int, end: int) -> Tensor:
        if further_starts is None:
            return noise(f"starts/{begin}", end - begin)[..., :d]
        return further_starts[begin:end]

    chunk = chunk or default_chunk(first.device)
    target = FunctionDensity(log_joint, first, precision=precision, chunk=chunk)
    _check_function(target, starts)
    with torch.no_grad(), _failures_named():
        modes = find_modes(
            target,
            starts,
            draw,
            starts=amis.starts,
            max_starts=amis.max_starts if further_starts is None else len(further_starts),
            chunk=max(1, chunk // d),
        )
        rows = torch.arange(images, device=first.device)
        best = modes.select(rows, int(modes.count.max()))
        proposal, _, reliable = adapt_proposal(target, best, noise, amis, chunk=chunk)
        values = final_estimate(target, proposal, reliable, noise, amis, exact=exact, chunk=chunk)
    ess, count = values["effective_sample_size"], torch.where(values["bridged"], amis.chains, samples)
    return MarginalLikelihood(
        log_likelihood=values["log_likelihood"],
        standard_error=torch.where(count > 1, (1 / ess - 1 / count).clamp(min=0).sqrt(), math.nan),
        effective_sample_size=ess,
        pareto_k=values["pareto_k"],
        upper=values.get("upper"),
        samples=count,
        starts=modes.starts,
        modes=modes.count,
        starts_disagree=modes.disagreed,
    )
