"""Significance of differences between cells: standard errors over seeds, and paired tests.

Two cells with means a, b over n_a, n_b seeds and sample standard deviations s_a, s_b differ by a - b with standard
error sqrt(s_a^2 / n_a + s_b^2 / n_b). A difference no larger than that is reported as not distinguishable.

Paired by seed (Student 1908): runs of one seed share the order of images and the initialisation of common parameters,
so that the differences d_i = a_i - b_i over common seeds can vary less than the values themselves;
t = mean(d) / (sd(d) / sqrt(n)) with n - 1 degrees of freedom. Within one seed the difference is also paired over test
images: its mean and standard error over images quantify the difference between these two trained models, not what
another seed would give.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from vaerun.memory import is_out_of_memory
from vaerun.report.cells import Cell
from vaerun.report.protocol import INCOMPARABLE, canonical, is_adaptive, protocol_of
from vaerun.report.runs import RunSummary
from vaerun.report.text import clean
from vaerun.storage.npz import read_npz
from vaerun.text import format_fixed

if TYPE_CHECKING:
    from vaerun.report.comparison import Comparison


def comparable_pairs(cells: Sequence[Cell], empty: str | None) -> Iterator[tuple[Cell, Cell]]:
    """Pairs of cells of different rows: within each column, and against rows that only have the column `empty`."""
    columns = list(dict.fromkeys(cell.column for cell in cells))
    constant = [c for c in cells if c.column == empty and not any(o.row == c.row and o.column != empty for o in cells)]
    for column in columns:
        in_column = [cell for cell in cells if cell.column == column]
        pairs = [*combinations(in_column, 2)]
        if column != empty:
            pairs += [(cell, other) for cell in in_column for other in constant]
        yield from (pair for pair in pairs if comparable(*pair))


def comparable(a: Cell, b: Cell) -> bool:
    """Whether two cells are comparable: an axis of the table may belong to the protocol (K, binarisation)."""
    if not a.finished or not b.finished:
        return True
    first, second = (protocol_of(cell.finished[0], cell.metric) for cell in (a, b))
    keys = (*INCOMPARABLE, "importance_samples", "amis.images")
    return all(canonical(first.get(key)) == canonical(second.get(key)) for key in keys)


def standard_error(a: Cell, b: Cell) -> float | None:
    """Standard error of the difference between two means; None if a cell has fewer than two seeds."""
    return None if a.se is None or b.se is None else math.hypot(a.se, b.se)


def inconclusive_differences(
    pairs: Sequence[tuple[Cell, Cell]], decimals: int, above: float = 0.0, up_to: float = 1.0
) -> list[str]:
    """A phrase for each pair whose difference is more than `above` and at most `up_to` of its standard errors."""
    phrases = []
    for a, b in pairs:
        error = standard_error(a, b)
        if error is None or a.mean is None or b.mean is None:
            continue
        difference = a.mean - b.mean
        if above * error < abs(difference) <= up_to * error or (above == 0 and a.mean == b.mean):
            text = f"{format_fixed(difference, decimals, '+')}, standard error {format_fixed(error, decimals)}"
            phrases.append(f"{a.name} and {b.name} (difference {text})")
    return phrases


@dataclass(frozen=True)
class PairedTest:
    """A paired comparison of two cells.

    Attributes:
        a, b: the cells.
        seeds: that both have.
        mean, se, t, p: of the differences a - b over these seeds; p is two-sided. None for fewer than two seeds
            (`mean`: for none); t and p also if all differences are equal.
        images: seed -> (mean, standard error over images, number of images), or why there is none.
    """

    a: Cell
    b: Cell
    seeds: tuple[str, ...]
    mean: float | None
    se: float | None
    t: float | None
    p: float | None
    images: dict[str, tuple[float, float, int] | str]


def paired_tests(table: Comparison) -> list[PairedTest]:
    """The paired comparison of every comparable pair of cells that have a mean."""
    cells = [cell for cell in table.cells.values() if cell.n]
    return [paired_test(*pair) for pair in comparable_pairs(cells, table.empty)]


def paired_test(a: Cell, b: Cell) -> PairedTest:
    """Compare two cells over their common seeds."""
    seeds = tuple(seed for seed in a.values if seed in b.values)
    differences = [a.values[seed] - b.values[seed] for seed in seeds]
    mean = statistics.fmean(differences) if differences else None
    se = t = p = None
    if len(seeds) > 1:
        se = statistics.stdev(differences) / math.sqrt(len(seeds))
        t, p = _t_test([a.values[s] for s in seeds], [b.values[s] for s in seeds]) if se > 0 else (None, None)
    runs = [dict(zip(cell.values, cell.finished, strict=True)) for cell in (a, b)]
    images = {seed: _difference_over_images(runs[0][seed], runs[1][seed], a.metric) for seed in seeds}
    return PairedTest(a, b, seeds, mean, se, t, p, images)


def _t_test(a: list[float], b: list[float]) -> tuple[float | None, float | None]:
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nearly equal differences give a huge t
        result = stats.ttest_rel(a, b)
    t, p = float(result.statistic), float(result.pvalue)
    return (t, p) if math.isfinite(t) and math.isfinite(p) else (None, None)


def _difference_over_images(a: RunSummary, b: RunSummary, metric: str) -> tuple[float, float, int] | str:
    """(mean, standard error, number of images) of the difference per image, or why there is none."""
    keys = (
        "data_sha256",
        "images.test",
        "images.validation",
        "split",
        "evaluated_split",
        "evaluated_images",
        "binarize",
    )
    protocols = [protocol_of(run, metric) for run in (a, b)]
    if any(canonical(protocols[0].get(key)) != canonical(protocols[1].get(key)) for key in keys):
        return "different images"
    values = [_per_image(run, metric) for run in (a, b)]
    if isinstance(values[0], str) or isinstance(values[1], str):
        return next(v for v in values if isinstance(v, str))
    n = len(values[0])
    if n != len(values[1]):
        if not is_adaptive(metric):
            return f"{n} and {len(values[1])} images"
        n = min(n, len(values[1]))  # each has the first images of the split
    difference = values[0][:n] - values[1][:n]
    return float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(n), n


def _per_image(run: RunSummary, metric: str) -> Any:
    """The metric per image, float64 [N], or why there is none."""
    import numpy as np

    name, path = metric.rpartition("/")[2], run.folder / "per_example.npz"
    if metric.partition("/")[0] != protocol_of(run, metric)["evaluated_split"]:
        return "no per-image values for this split"
    try:
        arrays = read_npz(path, (name,), root=run.folder)
        if name not in arrays:
            return f"no {clean(name, 60)} per image"
        values = arrays[name]
        if values.ndim != 1 or len(values) < 2 or values.dtype.kind not in "fiu":
            return f"{run.name}: the per-image values are not a list of numbers"
        values = values.astype(np.float64)
    except Exception as error:  # numpy raises many types for a damaged archive
        if is_out_of_memory(error):
            raise
        return f"{run.name}: per_example.npz cannot be read"
    recorded = run.number("metrics", metric)
    if not np.isfinite(values).all() or recorded is None:
        return f"{run.name}: per-image values are not finite"
    if abs(float(values.mean()) - recorded) > 1e-6 * max(1.0, abs(recorded)):
        return f"{run.name}: per-image values contradict result.json"
    return values
