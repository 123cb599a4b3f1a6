"""Modes of log f(z) = log p(x, z | c): Levenberg-Marquardt ascent from many starts, with a Laplace approximation each.

At mu, with gradient s and Gauss-Newton precision L of log f, a step solves (L + lambda diag L) step = s and is
accepted if log f does not fall; lambda is divided by 5 after an accepted step and multiplied by 8 after a rejected
one (Marquardt 1963). The Laplace evidence of a mode, the integral of exp of the quadratic expansion there, is

    log f(mu) + d/2 log 2 pi - 1/2 log det L.

A posterior may have several modes, and no sample drawn near one of them tells of the others. Starts are therefore drawn
from the prior, in blocks. An image gets a further block, as large as all those before together, if the last one changed
the log of its summed evidence by more than DISAGREEMENT nats, or if a mode of some weight has been reached only once.
By Good and Turing's estimate, the share of draws that reached such modes is the chance that the next one finds a new
mode. (q's start counts as one, though it is no draw.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from vaerun.distributions.normal import LOG_2PI
from vaerun.models.joint import Linearisation
from vaerun.tracking.monitor import SILENT, Monitor

MAX_ITERATIONS = 40
ATTEMPTS = 2  # steps tried per linearisation; the next ones take part in the next iteration of the others
MAX_REJECTIONS = 4  # iterations without an accepted step: the damping has then grown by 8^8
INITIAL_DAMPING, ACCEPTED, REJECTED = 0.1, 0.2, 8.0
TOLERANCE = 0.01  # nats gained by a step: below, the climb has arrived
DISAGREEMENT = 0.5  # nats between the evidence of some starts and of twice as many
SOME_WEIGHT = 1.0  # nats of evidence below the best mode's: a third of its weight
MAX_MODES = 8
# Squared distance in units of the Laplace covariance: modes 3.5 standard deviations apart are separate.
SAME_MODE = 12.0
WINDOW = 15.0  # nats of evidence below the best mode's; Laplace evidence errs by some nats, and weights are adapted


class LogDensity(Protocol):
    """log f(z) for each image of a batch, unnormalised: vaerun.models.Joint, for one."""

    latent_dim: int

    def select(self, rows: Tensor) -> Self:
        """The same for rows [M] of the batch, repeats allowed."""
        ...

    def log_prob(self, z: Tensor) -> Tensor:
        """[K, B, d] -> [K, B] nats."""
        ...

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log f [K, B] nats, and its gradient [K, B, d], at z [K, B, d]."""
        ...

    def log_ratio(self, z: Tensor, mu: Tensor) -> Tensor:
        """log f(z) - log f(mu), [B] nats, for z and mu [B, d]."""
        ...

    def linearise(self, mu: Tensor) -> Linearisation:
        """Gradient [B, d] and precision [B, d, d] of log f at mu [B, d]."""
        ...


@dataclass(frozen=True)
class Modes:
    """Up to J = MAX_MODES modes per image, the best first.

    Attributes:
        mean: [B, J, d].
        cholesky: C of the precision C C', [B, J, d, d].
        log_evidence: [B, J] nats; -inf where an image has fewer than J modes.
        starts: number of starts that each image was given, [B].
        disagreed: whether the second block of starts changed the evidence by more than DISAGREEMENT, [B] bool.
    """

    mean: Tensor
    cholesky: Tensor
    log_evidence: Tensor
    starts: Tensor
    disagreed: Tensor

    @property
    def count(self) -> Tensor:
        """Number of modes of each image, [B]; 1 if none is usable."""
        return (self.log_evidence > -math.inf).sum(1).clamp(min=1)

    def select(self, rows: Tensor, count: int) -> Modes:
        """The best `count` of images `rows` [M]."""
        mean, cholesky, evidence = (v[rows, :count] for v in (self.mean, self.cholesky, self.log_evidence))
        return Modes(mean, cholesky, evidence, self.starts[rows], self.disagreed[rows])


def climb(target: LogDensity, z: Tensor, monitor: Monitor = SILENT) -> tuple[Tensor, Tensor]:
    """The end points [M, d] of the ascents from z [M, d], and the precisions [M, d, d] one step before them."""
    end, precision = z.clone(), torch.empty(*z.shape, z.shape[-1], dtype=z.dtype, device=z.device)
    rows, here = torch.arange(len(z), device=z.device), target
    damping, rejections = torch.full_like(z[:, 0], INITIAL_DAMPING), torch.zeros_like(rows)
    for _ in range(MAX_ITERATIONS):
        monitor.check()
        mu = end[rows]
        local = here.linearise(mu)
        precision[rows] = local.precision
        diagonal = local.precision.diagonal(dim1=-2, dim2=-1)
        accepted, gain, new = torch.zeros_like(rows, dtype=torch.bool), torch.zeros_like(damping), mu
        for _ in range(ATTEMPTS):
            damped = local.precision + torch.diag_embed(damping.unsqueeze(-1) * diagonal)
            factor, info = torch.linalg.cholesky_ex(damped)
            step = torch.cholesky_solve(local.gradient.unsqueeze(-1), factor).squeeze(-1)
            moved = mu + torch.where((info == 0).unsqueeze(-1), step, 0.0)
            change = here.log_ratio(moved, mu)
            good = (change >= 0) & (info == 0) & ~accepted  # false for NaN
            new, gain = torch.where(good.unsqueeze(-1), moved, new), torch.where(good, change, gain)
            damping = torch.where(accepted, damping, torch.where(good, damping * ACCEPTED, damping * REJECTED))
            accepted = accepted | good
            if bool(accepted.all()):
                break
        end[rows] = new
        rejections = torch.where(accepted, 0, rejections + 1)
        moving = (accepted & (gain >= TOLERANCE)) | (~accepted & (rejections < MAX_REJECTIONS))
        if not bool(moving.any()):
            break
        if not bool(moving.all()):
            rows, damping, rejections = rows[moving], damping[moving], rejections[moving]
            here = target.select(rows)
    return end, precision


def _peaks(
    target: LogDensity, images: Tensor, starts: Tensor, chunk: int, monitor: Monitor
) -> tuple[Tensor, Tensor, Tensor]:
    """Climb from starts [M, d] of images [M], `chunk` at once: z [M, d], factors [M, d, d], evidence [M].

    A climb that ends where log f or L is unusable has evidence -inf.
    """
    ends, factors, evidence = [], [], []
    for rows in torch.arange(len(starts), device=starts.device).split(chunk):
        here = target.select(images[rows])
        z, precision = climb(here, starts[rows], monitor)
        factor, info = torch.linalg.cholesky_ex(precision)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        value = here.log_prob(z.unsqueeze(0)).squeeze(0) + 0.5 * z.shape[-1] * LOG_2PI - 0.5 * log_det
        usable = (info == 0) & value.isfinite()
        eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        ends.append(torch.where(usable.unsqueeze(-1), z, 0.0))
        factors.append(torch.where(usable[:, None, None], factor, eye))
        evidence.append(torch.where(usable, value, -math.inf))
    return torch.cat(ends), torch.cat(factors), torch.cat(evidence)


def _distinct(
    z: Tensor, cholesky: Tensor, log_evidence: Tensor, visits: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best MAX_MODES distinct modes among S peaks per image, the best first.

    Peaks with (z - mu)' L (z - mu) < min(d, SAME_MODE) from a better one at mu count as the same: many decoders are
    piecewise linear, and their modes come in clusters.

    Arguments and results: z [B, S, d], factors [B, S, d, d], evidence [B, S], and the number of climbs that ended there
    [B, S]; S becomes J.
    """
    left, images = log_evidence.clone(), torch.arange(len(z), device=z.device)
    chosen, evidence, climbs = [], [], []
    for _ in range(MAX_MODES):
        best, index = left.max(1)
        chosen.append(index)
        evidence.append(best)
        white = (z - z[images, index].unsqueeze(1)) @ cholesky[images, index]
        same = (white.square().sum(-1) < min(z.shape[-1], SAME_MODE)) & (left > -math.inf)
        climbs.append(torch.where(same, visits, 0).sum(1))
        left = torch.where(same, -math.inf, left)
    rows, index, value = images.unsqueeze(1), torch.stack(chosen, 1), torch.stack(evidence, 1)
    value = torch.where(value >= value[:, :1] - WINDOW, value, -math.inf)
    return z[rows, index], cholesky[rows, index], value, torch.stack(climbs, 1)


def find_modes(
    target: LogDensity,
    first: Tensor,
    draw: Callable[[int, int], Tensor],
    *,
    starts: int,
    max_starts: int,
    chunk: int,
    monitor: Monitor = SILENT,
) -> Modes:
    """The modes of each image of a batch.

    Arguments:
        target: log f of the batch.
        first: starts that are always used, such as the mean of q, [S, B, d]; S may be 0.
        draw: (i, j) -> the drawn starts number i..j-1, [j - i, B, d], from the prior.
        starts: number of drawn starts in the first block, and in the second.
        max_starts: drawn starts of an image after which it gets no further block.
        chunk: climbs at once.
        monitor: checked at each step.
    """
    size, d = first.shape[1:]
    z, evidence = first.new_zeros(size, MAX_MODES, d), first.new_full((size, MAX_MODES), -math.inf)
    cholesky = torch.eye(d, dtype=z.dtype, device=z.device).repeat(size, MAX_MODES, 1, 1)
    visits = torch.zeros(size, MAX_MODES, dtype=torch.long, device=z.device)
    active = torch.arange(size, device=z.device)
    given, disagreed = torch.zeros_like(active), torch.zeros_like(active, dtype=torch.bool)
    drawn, block = 0, starts
    while len(active):
        new = draw(drawn, drawn + block)[:, active]
        if not drawn:
            new = torch.cat([first, new])
        count, images = new.shape[:2]
        peaks = _peaks(target, active.repeat(count), new.flatten(0, 1), chunk, monitor)
        once = torch.ones(count * images, dtype=torch.long, device=z.device)
        by_image = (value.unflatten(0, (count, images)).transpose(0, 1) for value in (*peaks, once))
        before = torch.logsumexp(evidence[active], 1)
        known = z[active], cholesky[active], evidence[active], visits[active]
        merged = _distinct(*(torch.cat(pair, 1) for pair in zip(known, by_image, strict=True)))
        z[active], cholesky[active], evidence[active], visits[active] = merged
        given[active] += count
        drawn += block
        if drawn > starts:
            # Not a number where no usable mode has been found yet.
            changed = (torch.logsumexp(evidence[active], 1) - before).abs() > DISAGREEMENT
            if drawn == 2 * starts:
                disagreed = changed
            best = evidence[active]
            lonely = ((best > best[:, :1] - SOME_WEIGHT) & (visits[active] == 1)).any(1)
            active, block = active[changed | lonely | (best[:, 0] == -math.inf)], drawn
        if drawn + block > max_starts:
            break
    return Modes(z, cholesky, evidence, given, disagreed)
