"""The variance of the observation model that gives a generator a density (Wu et al. 2017).

The images x = G(z) lie on a surface of d dimensions, where densities are 0 or infinite. With noise of variance s2
added, on pixels in [0, 1],

    p(x) = int p(z) N(x; G(z), s2 I) dz

is finite, and annealed importance sampling bounds it from below (Wu, Burda, Salakhutdinov & Grosse 2017). The value
depends on s2, which like any parameter is chosen on validation images: the one with the largest mean bound. Narrow
posteriors are harder to anneal to, so too few temperatures bias the choice towards a larger s2; the value is still a
lower bound.

The search proceeds from large variances, which are easy, to small ones, which are hard, and ends after two in a row
worse than the best so far. If the best is the first or last of the grid, the grid is extended beyond it in the same
ratio, by at most two values. Then the geometric midpoints to both neighbours of the best are tried, and finally the
maximum of the parabola in log s2 through the best and its neighbours. All runs share their noise, so their differences
are less noisy than their values. If s2 is off by a factor e^a, the value is lower by about D a^2 / 4 nats.
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
"""The best s2 is about the squared error per pixel of the nearest G(z). The code of Wu et al. uses 0.025 and 0.01 for
GANs on MNIST with 10 and 50 latent dimensions."""
PATIENCE = 2  # consecutive worse values that end the descent
EXTENSIONS = 2  # maximum number of values beyond the grid


@dataclass(frozen=True)
class VarianceChoice:
    """An observation variance and the candidates that it was chosen from.

    Attributes:
        variance: s2 with the largest value.
        values: mean AIS log-likelihood (nats per image; -inf if not finite) of every variance, in the order tried.
        beyond: number of variances beyond the grid.
        at_edge: whether the best is the smallest or largest of all, so that a better one may lie further out.
    """

    variance: float
    values: dict[float, float]
    beyond: int = 0
    at_edge: bool = False


def max_runs(variances: Sequence[float]) -> int:
    """An upper bound on the number of runs of choose_variance."""
    return len(set(variances)) + EXTENSIONS + 3


def _descending(variances: Sequence[float]) -> list[float]:
    for variance in variances:
        number = isinstance(variance, int | float) and not isinstance(variance, bool)
        if not number or not 0 < variance < math.inf:
            raise InputError(f"an observation variance must be a number above 0, got {variance}")
    grid = sorted({float(variance) for variance in variances}, reverse=True)
    if len(grid) < 2:
        raise InputError(f"choosing the observation variance needs two or more candidates, got {len(grid)}")
    return grid


def _vertex(variances: Sequence[float], values: Sequence[float]) -> float:
    """The maximum of the parabola in log s2 through three points, of which the middle one is the highest."""
    (a, b, c), (fa, fb, fc) = map(math.log, variances), values
    left, right = (b - a) * (fb - fc), (b - c) * (fb - fa)
    if left == right:  # all three values are equal
        return variances[1]
    return math.exp(b - 0.5 * ((b - a) * left - (b - c) * right) / (left - right))


def choose_variance(
    observation_model: Callable[[float], LatentModel],
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
        observation_model: the model for a given s2, in evaluation mode: its decoder is the generator, its likelihood a
            Gaussian of that fixed variance on pixels in [0, 1].
        split: the validation images.
        annealing: settings of annealed importance sampling.
        variances: the grid, in any order; about evenly spaced in log s2.
        images: number of images to use, starting with the first.
        seed: of the noise, the same for every variance.
        monitor: checked between transitions, advanced by images in every run: at most images times max_runs.

    Raises InputError for an unusable grid or an empty split, RunError if no value is finite.
    """
    grid, values = _descending(variances), dict[float, float]()
    if not len(split):
        raise InputError(f"the observation variance is chosen on images, but the {split.name} split has none")

    def run(variance: float) -> float:
        model = observation_model(variance)
        result = annealed_importance_sampling(model, split, annealing, seed=seed, images=images, monitor=monitor)
        mean = float(result["ais"].mean())
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
            f"no observation variance from {grid[0]:g} to {grid[-1]:g} gives a finite log-likelihood: check the "
            "generator's losses and pictures"
        )
    beyond = 0
    while beyond < EXTENSIONS and best() in (max(values), min(values)):
        up = best() == max(values)
        run(max(values) * grid[0] / grid[1] if up else min(values) * grid[-1] / grid[-2])
        beyond += 1
    chosen, ordered = best(), sorted(values)
    i = ordered.index(chosen)
    for neighbour in (*ordered[max(i - 1, 0) : i], *ordered[i + 1 : i + 2]):
        run(math.sqrt(chosen * neighbour))
    chosen, ordered = best(), sorted(values)
    i = ordered.index(chosen)
    if 0 < i < len(ordered) - 1 and math.isfinite(min(values[v] for v in ordered[i - 1 : i + 2])):
        run(_vertex(ordered[i - 1 : i + 2], [values[v] for v in ordered[i - 1 : i + 2]]))
    chosen = best()
    return VarianceChoice(chosen, values, beyond, chosen in (min(values), max(values)))
