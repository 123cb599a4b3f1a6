"""What the seeds can tell: differences within their standard error, and paired tests.

Two cells with means a, b of n_a, n_b seeds and sample standard deviations s_a, s_b differ by a - b with the standard
error sqrt(s_a^2 / n_a + s_b^2 / n_b). A difference that is not larger is named: these seeds do not tell the two apart.

Paired by seed (Student 1908): runs of one seed share their images' order and the initialisation of what they have in
common, so that the differences d_i = a_i - b_i of common seeds vary less than the values do where that matters;
t = mean(d) / (sd(d) / sqrt(n)) with n - 1 degrees of freedom. Within one seed the difference is also paired over test
images: its mean and standard error over images say how sure the difference of these two trained models is, not what
another seed would give.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from vaerun.report.cells import Cell
from vaerun.report.protocol import INCOMPARABLE, canonical, protocol_of
from vaerun.report.runs import Run
from vaerun.report.text import clean
from vaerun.storage.npz import read_npz
from vaerun.text import fixed


def comparable_pairs(cells: Sequence[Cell], empty: str | None) -> Iterator[tuple[Cell, Cell]]:
    """Cells of two rows: of one column, and each against the rows that stand in the column `empty` alone."""
    columns = list(dict.fromkeys(cell.column for cell in cells))
    alone = [c for c in cells if c.column == empty and not any(o.row == c.row and o.column != empty for o in cells)]
    for column in columns:
        here = [cell for cell in cells if cell.column == column]
        both = [*combinations(here, 2)]
        if column != empty:
            both += [(cell, other) for cell in here for other in alone]
        yield from (pair for pair in both if comparable(*pair))


def comparable(one: Cell, other: Cell) -> bool:
    """Whether two cells' numbers compare: an axis of the table may be a part of the protocol (K, binarisation)."""
    if not one.finished or not other.finished:
        return True
    here, there = (protocol_of(cell.finished[0], cell.metric) for cell in (one, other))
    return all(canonical(here.get(key)) == canonical(there.get(key)) for key in (*INCOMPARABLE, "importance_samples"))


def standard_error(one: Cell, other: Cell) -> float | None:
    """Of the difference of two cells' means; None where one has fewer than two seeds."""
    return None if one.se is None or other.se is None else math.hypot(one.se, other.se)


def inconclusive_differences(
    compared: Sequence[tuple[Cell, Cell]], decimals: int, above: float = 0.0, errors: float = 1.0
) -> list[str]:
    """A phrase for each two cells whose difference is above `above` and at most `errors` of its standard errors."""
    found = []
    for one, other in compared:
        error = standard_error(one, other)
        if (
            error is None
            or one.mean is None
            or other.mean is None
            or not (
                above * error < abs(one.mean - other.mean) <= errors * error or (above == 0 and one.mean == other.mean)
            )
        ):
            continue
        difference = f"{fixed(one.mean - other.mean, decimals, '+')}, standard error {fixed(error, decimals)}"
        found.append(f"{one.name} and {other.name} (difference {difference})")
    return found


@dataclass(frozen=True)
class PairedTest:
    """A paired comparison of two cells.

    Attributes:
        seeds: that both have.
        mean, se, t, p: of the differences one - other over these seeds; p two-sided. None where there are fewer than
            two seeds; t and p also where all differences are the same.
        images: seed -> (mean, standard error over images, number of images), or why there is none.
    """

    one: Cell
    other: Cell
    seeds: tuple[str, ...]
    mean: float | None
    se: float | None
    t: float | None
    p: float | None
    images: dict[str, tuple[float, float, int] | str]


def paired_test(one: Cell, other: Cell) -> PairedTest:
    """The comparison of two cells by their common seeds."""
    seeds = tuple(seed for seed in one.values if seed in other.values)
    differences = [one.values[seed] - other.values[seed] for seed in seeds]
    mean = statistics.fmean(differences) if differences else None
    se = t = p = None
    if len(seeds) > 1:
        se = statistics.stdev(differences) / math.sqrt(len(seeds))
        t, p = _t_test([one.values[s] for s in seeds], [other.values[s] for s in seeds]) if se > 0 else (None, None)
    runs = [dict(zip(cell.values, cell.finished, strict=True)) for cell in (one, other)]
    images = {seed: _over_images(runs[0][seed], runs[1][seed], one.metric) for seed in seeds}
    return PairedTest(one, other, seeds, mean, se, t, p, images)


def _t_test(one: list[float], other: list[float]) -> tuple[float | None, float | None]:
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nearly equal differences: t is huge, and says so itself
        found = stats.ttest_rel(one, other)
    t, p = float(found.statistic), float(found.pvalue)
    return (t, p) if math.isfinite(t) and math.isfinite(p) else (None, None)


def _over_images(one: Run, other: Run, metric: str) -> tuple[float, float, int] | str:
    """Mean and standard error over images of the difference, or why not."""
    same = (
        "data_sha256",
        "images.test",
        "images.validation",
        "split",
        "evaluated_split",
        "evaluated_images",
        "binarize",
    )
    protocols = [protocol_of(run, metric) for run in (one, other)]
    if any(canonical(protocols[0].get(key)) != canonical(protocols[1].get(key)) for key in same):
        return "not of the same images"
    values = [_per_image(run, metric) for run in (one, other)]
    if isinstance(values[0], str) or isinstance(values[1], str):
        return next(v for v in values if isinstance(v, str))
    if len(values[0]) != len(values[1]):
        return f"{len(values[0])} and {len(values[1])} images"
    difference = values[0] - values[1]
    n = len(difference)
    return float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(n), n


def _per_image(run: Run, metric: str) -> Any:
    """The metric of each image [N] float64, or why there is none."""
    import numpy as np

    name, path = metric.rpartition("/")[2], run.folder / "per_example.npz"
    if metric.partition("/")[0] != protocol_of(run, metric)["evaluated_split"]:
        return "no values per image of this split"
    try:
        found = read_npz(path, (name,), root=run.folder)
        if name not in found:
            return f"no {clean(name, 60)} per image"
        values = found[name]
        if values.ndim != 1 or len(values) < 2 or values.dtype.kind not in "fiu":
            return f"{run.name}: no list of numbers per image"
        values = values.astype(np.float64)
    except Exception:  # numpy raises many kinds for a damaged archive
        return f"{run.name}: per_example.npz cannot be read"
    recorded = run.number("metrics", metric)
    if not np.isfinite(values).all() or recorded is None:
        return f"{run.name}: values per image are not finite"
    if abs(float(values.mean()) - recorded) > 1e-6 * max(1.0, abs(recorded)):
        return f"{run.name}: the values per image are not those of result.json"
    return values
