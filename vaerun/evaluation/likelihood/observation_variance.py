"""The observation model that gives a generator a density, and the choice of its variance (Wu et al. 2017).

The images x = G(z) fill a surface of d dimensions: almost no image lies on it, and its density is 0 or infinite. With
noise of variance s2 added, on pixels in [0, 1],

    p(x) = int p(z) N(x; G(z), s2 I) dz

is finite, and annealed importance sampling bounds it from below (Wu, Burda, Salakhutdinov & Grosse 2017). The value
depends on s2, which like any parameter is chosen on validation images: the one with the largest mean bound. Narrow
posteriors are the harder ones, so too few temperatures move the choice to a larger s2; the value at it is then still a
lower bound.

The search goes from large variances, which are easy, to small ones, which are not, and ends after two in a row that are
worse than the best so far. If the best is the first or the last of those given, the grid is carried on beyond it, in
the same ratio, at most two values far. Then the geometric midpoints to both neighbours of the best are tried, and at
last the top of the parabola in log s2 through the best and its neighbours. All runs share their noise, so that their
differences are less noisy than they. If s2 is off by a factor e^a, the value is lower by about D a^2 / 4 nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vaerun.data.dataset import Split
from vaerun.errors import InputError, RunError
from vaerun.evaluation.likelihood.annealed import Annealing, annealed_importance_sampling
from vaerun.models import LatentModel
from vaerun.tracking.monitor import SILENT, Monitor

VARIANCES = (0.1, 0.03, 0.01, 0.003, 0.001)
"""The best s2 is about the squared error per pixel of the nearest G(z). The code of Wu et al. has 0.025 and 0.01 for
GANs on MNIST with 10 and 50 latent dimensions."""
PATIENCE = 2  # worse values in a row that end the descent
EXTENSIONS = 2  # values beyond the grid


@dataclass(frozen=True)
class VarianceChoice:
    """An observation variance and what it was chosen from.

    Attributes:
        variance: s2 with the largest value.
        values: mean AIS log-likelihood (nats per image; -inf where not finite) of every variance tried, in that order.
        beyond: how many of them lie beyond the grid.
        at_edge: the best is the smallest or largest of all: a better one may lie further out.
    """

    variance: float
    values: dict[float, float]
    beyond: int = 0
    at_edge: bool = False


def max_runs(variances: Sequence[float]) -> int:
    """An upper limit of the runs that choose_variance makes."""
    return len(set(variances)) + EXTENSIONS + 3


def _descending(variances: Sequence[float]) -> list[float]:
    for variance in variances:
        number = isinstance(variance, int | float) and not isinstance(variance, bool)
        if not number or not 0 < variance < math.inf:
            raise InputError(f"an observation variance must be a number above 0, got {variance}")
    grid = sorted({float(variance) for variance in variances}, reverse=True)
    if len(grid) < 2:
        raise InputError(f"an observation variance is chosen among two or more, got {len(grid)}")
    return grid


def _vertex(variances: Sequence[float], values: Sequence[float]) -> float:
    """Where the parabola in log s2 through three points, the middle one the highest, has its top."""
    (a, b, c), (fa, fb, fc) = map(math.log, variances), values
    left, right = (b - a) * (fb - fc), (b - c) * (fb - fa)
    if left == right:  # all three alike
        return variances[1]
    return math.exp(b - 0.5 * ((b - a) * left - (b - c) * right) / (left - right))


def choose_variance(
    observed: Callable[[float], LatentModel],
    split: Split,
    annealing: Annealing,
    *,
    variances: Sequence[float] = VARIANCES,
    images: int,
    seed: int,
    monitor: Monitor = SILENT,
) -> VarianceChoice:
    """The observation variance with the largest mean AIS log-likelihood of validation images.

    Arguments:
        observed: the model at a given s2, in evaluation mode: its decoder is the generator, its likelihood a Gaussian
            of that fixed variance on pixels in [0, 1].
        split: the validation images.
        annealing: how.
        variances: the grid, in any order; about evenly spaced in log s2.
        images: only the first so many.
        seed: of the noise, the same for every variance.
        monitor: checked between transitions, advanced by images in every run anew: at most images times most_runs.

    Raises InputError for a grid or a split that cannot be used, RunError when no value is finite.
    """
    grid, values = _descending(variances), dict[float, float]()
    if not len(split):
        raise InputError(f"an observation variance is chosen on images, and the {split.name} split has none")

    def run(variance: float) -> float:
        model = observed(variance)
        found = annealed_importance_sampling(model, split, annealing, seed=seed, images=images, monitor=monitor)
        mean = float(found["ais"].mean())
        values[variance] = mean if math.isfinite(mean) else -math.inf
        return values[variance]

    def best() -> float:
        return max(values, key=values.__getitem__)

    worse, largest = 0, -math.inf
    for variance in grid:
        value = run(variance)
        worse = 0 if value >= largest else worse + 1
        largest = max(largest, value)
        if worse == PATIENCE:
            break
    if largest == -math.inf:
        raise RunError(
            f"no observation variance from {grid[0]:g} to {grid[-1]:g} gave a finite log-likelihood: look at the "
            "generator's losses and pictures"
        )
    beyond = 0
    while beyond < EXTENSIONS and best() in (max(values), min(values)):
        up = best() == max(values)
        run(max(values) * grid[0] / grid[1] if up else min(values) * grid[-1] / grid[-2])
        beyond += 1
    chosen, ordered = best(), sorted(values)
    at = ordered.index(chosen)
    for neighbour in (*ordered[max(at - 1, 0) : at], *ordered[at + 1 : at + 2]):
        run(math.sqrt(chosen * neighbour))
    chosen, ordered = best(), sorted(values)
    at = ordered.index(chosen)
    if 0 < at < len(ordered) - 1 and math.isfinite(min(values[v] for v in ordered[at - 1 : at + 2])):
        run(_vertex(ordered[at - 1 : at + 2], [values[v] for v in ordered[at - 1 : at + 2]]))
    chosen = best()
    return VarianceChoice(chosen, values, beyond, chosen in (min(values), max(values)))
