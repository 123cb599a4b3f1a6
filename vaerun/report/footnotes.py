"""Footnotes of a table: reliability, published numbers, differing settings and versions, unfinished runs, and seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from vaerun.report import captions
from vaerun.report.cells import NO_VALUE, STATES, Cell
from vaerun.report.protocol import cell_differences, is_adaptive
from vaerun.report.runs import MISSING, OK, RunSummary
from vaerun.report.significance import comparable, comparable_pairs, inconclusive_differences
from vaerun.report.text import abbreviate, clean
from vaerun.text import format_fixed

if TYPE_CHECKING:
    from vaerun.report.comparison import Comparison

MISSED_BY_Q = "test/amis_minus_is"
_MAXIMUM_NAMED = 20  # maximum number of runs listed per state
_DIAGNOSTICS = {
    captions.LIKELIHOOD_METRIC: (
        "test/pareto_k_unreliable",
        "importance sampling with q",
        "is too low by an unknown amount, which differs between methods",
    ),
    captions.ADAPTIVE_METRIC: (
        "test/amis_pareto_k_unreliable",
        "adaptive importance sampling",
        "may be too low where AIS has not replaced it (evaluation.amis.fallback)",
    ),
}
"""Estimate of log p(x) -> fraction of images with k-hat above 0.7; the method, and what follows, in words."""


def collect_footnotes(table: Comparison, axes: Sequence[str], rows: Sequence[Any]) -> list[str]:
    """All footnotes in reading order, beginning with those that the table already has.

    Arguments:
        axes: settings on the table's axes.
        rows: values of the settings on its rows.
    """
    cells = list(table.cells.values())
    notes = [*reliability(table), *_missed_by_q(table), *table.notes]
    notes += _published(table, rows)
    notes += cell_differences([(cell.name, cell.finished or cell.runs) for cell in cells if cell.runs], axes)
    notes += _differing_versions(cells, ("torch", "vaerun"))
    notes += [f"{run.name} started from a checkpoint of another run" for run in table.runs() if _started_from(run)]
    notes += _unfinished(table.metric, cells)
    return notes + seed_footnotes(table)


def reliability(table: Comparison) -> list[str]:
    """The share of images whose estimate of log p(x) is not reliable, next to the table of that estimate."""
    _, method, consequence = _DIAGNOSTICS.get(table.metric, ("", "", ""))
    shares = {cell.name: share for cell in table.cells.values() if (share := unreliable_share(cell)) is not None}
    if not shares:
        return []
    worst = max(shares, key=lambda name: shares[name])
    unrecorded = sum(1 for cell in table.cells.values() if cell.n) - len(shares)
    absent = f"; not recorded in {unrecorded} cells" if unrecorded else ""
    if shares[worst] == 0:
        return [f"Pareto k-hat is at most 0.7 under {method} for every image{absent}"]
    spread = f"{statistics.fmean(shares.values()):.1%} of the images, mean over cells (at most {shares[worst]:.1%}"
    return [
        f"Pareto k-hat above 0.7 under {method} for {spread}, {worst}{absent}): {table.metric} of these images "
        f"{consequence}"
    ]


def _missed_by_q(table: Comparison) -> list[str]:
    """How far importance sampling with q is below adaptive importance sampling, over the same images."""
    if table.metric != captions.ADAPTIVE_METRIC:
        return []
    means = {cell.name: cell.mean_of("metrics", MISSED_BY_Q) for cell in table.cells.values()}
    known = {name: mean for name, mean in means.items() if mean is not None}
    if not known:
        return []
    (low, least), (high, most) = (pick((mean, name) for name, mean in known.items()) for pick in (min, max))
    unit = captions.unit(MISSED_BY_Q, table.runs())
    span = f"{format_fixed(low, 2)} ({least}) to {format_fixed(high, 2)} ({most})"
    return [f"importance sampling with q is lower on the same images, by {span} {unit} ({MISSED_BY_Q})"]


def unreliable_share(cell: Cell) -> float | None:
    """Fraction of images with k-hat above 0.7, mean over the cell's runs that recorded it."""
    diagnostic, *_ = _DIAGNOSTICS.get(cell.metric, ("", "", ""))
    shares = [share for run in cell.finished if (share := run.number("metrics", diagnostic)) is not None]
    return statistics.fmean(shares) if shares else None


def different_images(first: Comparison, second: Comparison) -> list[str]:
    """A footnote for the second table if both are of log p(x), of different numbers of images."""
    if not all(table.metric in _DIAGNOSTICS and table.runs() for table in (first, second)):
        return []
    count, own = (captions.evaluated_images(table.metric, table.runs())[0] for table in (first, second))
    if count == own:
        return []
    return [
        f"{second.metric} averages over {own} images, {first.metric} over {count}: compare numbers within a table, not "
        "between the two"
    ]


def _started_from(run: RunSummary) -> bool:
    protocol = run.result.get("protocol")
    return isinstance(protocol, dict) and bool(protocol.get("started_from"))


def _published(table: Comparison, rows: Sequence[Any]) -> list[str]:
    published = table.published
    if published is None:
        return []
    notes = [f"published: {published.source}"]
    notes += [f"protocol: {line}" for line in published.differences(table.runs() or _all_runs(table))]
    notes += published.footnotes(rows)
    absent = [cell.name for cell in table.cells.values() if cell.published is not None and not cell.n]
    if absent:
        notes.append(f"published, but not here: {', '.join(absent)}")
    unpublished = [cell.name for cell in table.cells.values() if cell.published is None]
    if unpublished:
        notes.append(f"here, but not published: {', '.join(unpublished)}")
    return notes


def _all_runs(table: Comparison) -> list[RunSummary]:
    return [run for cell in table.cells.values() for run in cell.runs]


def _differing_versions(cells: Sequence[Cell], packages: Sequence[str]) -> list[str]:
    """A footnote for each package of which finished runs used different versions."""
    notes = []
    for package in packages:
        cells_by_version: dict[str, list[str]] = {}
        for cell in cells:
            for run in cell.finished:
                version = clean(run.section("environment").get(package, "not recorded"), 40)
                names = cells_by_version.setdefault(version, [])
                if cell.name not in names:
                    names.append(cell.name)
        if len(cells_by_version) > 1:
            parts = [
                f"{version} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
                for version, names in cells_by_version.items()
            ]
            notes.append(f"versions differ: {package} {'; '.join(parts)}")
    return notes


def _unfinished(metric: str, cells: Sequence[Cell]) -> list[str]:
    """The runs without a number, and why."""
    runs_by_state: dict[str, list[str]] = {}
    for cell in cells:
        for run in cell.runs:
            if run in cell.finished:
                continue
            state = NO_VALUE if run.state == OK else run.state
            why = f": {run.error}" if run.error else ""
            runs_by_state.setdefault(state, []).append(f"{cell.name} seed {clean(run.seed, 20)} ({run.name}){why}")
    notes = []
    for state in STATES:
        if named := runs_by_state.get(state):
            heading = "missing (planned, not started)" if state == MISSING else state
            if state == NO_VALUE:
                finished = len(named) + sum(cell.n for cell in cells)
                why = " (an older version, or evaluation.amis=false)" if is_adaptive(metric) else ""
                heading = f"{len(named)} of {finished} finished runs have no {metric}{why}"
            more = f"; and {len(named) - _MAXIMUM_NAMED} more" if len(named) > _MAXIMUM_NAMED else ""
            notes.append(f"{heading}: {'; '.join(named[:_MAXIMUM_NAMED])}{more}")
    return notes


def seed_footnotes(table: Comparison) -> list[str]:
    """The number of seeds, and the differences too small to distinguish with them."""
    cells = [cell for cell in table.cells.values() if cell.n]
    if not cells:
        return ["seeds: no run has finished"]
    cells_by_count = {n: [cell.name for cell in cells if cell.n == n] for n in sorted({cell.n for cell in cells})}
    used = sorted({seed for cell in cells for seed in cell.values}, key=lambda s: (len(s), s))
    shown = ", ".join(clean(s, 20) for s in used[:10]) + (", ..." if len(used) > 10 else "")
    if len(cells_by_count) == 1:
        notes = [f"seeds: {next(iter(cells_by_count))} in every finished cell ({shown})"]
    else:
        parts = [f"{n} in {abbreviate(names, 6)}" for n, names in cells_by_count.items()]
        notes = [f"seeds: {'; '.join(parts)} ({shown})"]
    if 1 in cells_by_count:
        notes.append(f"only one seed in {abbreviate(cells_by_count[1], 6)}: its spread over seeds is unknown")
    between_rows = inconclusive_differences(list(comparable_pairs(cells, table.empty)), table.decimals)
    row_pairs = [
        pair
        for row in table.rows
        for pair in combinations([c for c in cells if c.row == row and c.column != table.empty], 2)
        if comparable(*pair)
    ]
    along_rows = inconclusive_differences(row_pairs, table.decimals)
    if between_rows:
        text = "; ".join(between_rows)
        notes.append(f"not distinguishable with these seeds (difference within its standard error): {text}")
    if along_rows:
        notes.append(f"not distinguishable along the row: {'; '.join(along_rows)}")
    all_pairs = [*comparable_pairs(cells, table.empty), *row_pairs]
    uncertain = inconclusive_differences(all_pairs, table.decimals, above=1.0, up_to=2.0)
    if uncertain:
        notes.append(f"uncertain (one to two standard errors; --paired adds paired tests): {'; '.join(uncertain)}")
    return notes
