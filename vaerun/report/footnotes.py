"""The lines below a table: what its numbers are beside, what differs, what is missing, what the seeds can tell."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from vaerun.report.cells import NO_VALUE, STATES, Cell
from vaerun.report.protocol import cell_differences
from vaerun.report.runs import MISSING, OK, Run
from vaerun.report.significance import comparable, inconclusive_differences, comparable_pairs
from vaerun.report.text import clean

if TYPE_CHECKING:
    from vaerun.report.comparison import Comparison

_MOST = 20  # runs that are named of one state


def collect_footnotes(table: Comparison, axes: Sequence[str], rows: Sequence[Any]) -> list[str]:
    """All lines, in the order in which they are read; begins with those that the table has already."""
    cells = list(table.cells.values())
    found = list(table.notes)
    found += _published(table, rows)
    found += cell_differences([(cell.name, cell.finished or cell.runs) for cell in cells if cell.runs], axes)
    found += _differing(cells, "versions", [("torch", "torch"), ("vaerun", "vaerun")])
    found += [f"{run.name} was started from a checkpoint of another run" for run in table.runs() if _started_from(run)]
    found += _unfinished(cells)
    return found + seed_footnotes(table)


def _started_from(run: Run) -> bool:
    found = run.result.get("protocol")
    return isinstance(found, dict) and bool(found.get("started_from"))


def _published(table: Comparison, rows: Sequence[Any]) -> list[str]:
    published = table.published
    if published is None:
        return []
    found = [f"published: {published.source}"]
    found += [f"protocol: {line}" for line in published.differences(table.runs() or _all(table))]
    found += published.footnotes(rows)
    absent = [cell.name for cell in table.cells.values() if cell.published is not None and not cell.n]
    if absent:
        found.append(f"published, and not here: {', '.join(absent)}")
    own = [cell.name for cell in table.cells.values() if cell.published is None]
    if own:
        found.append(f"here, and not published: {', '.join(own)}")
    return found


def _all(table: Comparison) -> list[Run]:
    return [run for cell in table.cells.values() for run in cell.runs]


def _differing(cells: Sequence[Cell], what: str, keys: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each version that is not the same for all finished runs."""
    found = []
    for key, name in keys:
        by: dict[str, list[str]] = {}
        for cell in cells:
            for run in cell.finished:
                here = by.setdefault(clean(run.section("environment").get(key, "not recorded"), 40), [])
                if cell.name not in here:
                    here.append(cell.name)
        if len(by) > 1:
            parts = [
                f"{value} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" for value, names in by.items()
            ]
            found.append(f"{what} differ: {name} {'; '.join(parts)}")
    return found


def _unfinished(cells: Sequence[Cell]) -> list[str]:
    """The runs that gave no number, and why."""
    by: dict[str, list[str]] = {}
    for cell in cells:
        for run in cell.runs:
            if run in cell.finished:
                continue
            state = NO_VALUE if run.state == OK else run.state
            why = f": {run.error}" if run.error else ""
            by.setdefault(state, []).append(f"{cell.name} seed {clean(run.seed, 20)} ({run.name}){why}")
    found = []
    for state in STATES:
        if named := by.get(state):
            what = "missing (planned, not begun)" if state == MISSING else state
            more = f"; and {len(named) - _MOST} more" if len(named) > _MOST else ""
            found.append(f"{what}: {'; '.join(named[:_MOST])}{more}")
    return found


def seed_footnotes(table: Comparison) -> list[str]:
    """How many seeds there are, and which differences they do not tell from noise."""
    cells = [cell for cell in table.cells.values() if cell.n]
    if not cells:
        return ["seeds: no run is finished"]
    counts = {n: [cell.name for cell in cells if cell.n == n] for n in sorted({cell.n for cell in cells})}
    used = sorted({seed for cell in cells for seed in cell.values}, key=lambda s: (len(s), s))
    shown = ", ".join(clean(s, 20) for s in used[:10]) + (", ..." if len(used) > 10 else "")
    if len(counts) == 1:
        found = [f"seeds: {next(iter(counts))} in every finished cell ({shown})"]
    else:
        parts = [f"{n} in {_named(names)}" for n, names in counts.items()]
        found = [f"seeds: {'; '.join(parts)} ({shown})"]
    if 1 in counts:
        found.append(f"one seed only in {_named(counts[1])}: nothing can be said of the spread over seeds there")
    methods = inconclusive_differences(list(comparable_pairs(cells, table.empty)), table.decimals)
    within = [
        pair
        for row in table.rows
        for pair in combinations([c for c in cells if c.row == row and c.column != table.empty], 2)
        if comparable(*pair)
    ]
    along = inconclusive_differences(within, table.decimals)
    if methods:
        found.append(f"not told apart by these seeds (difference within its standard error): {'; '.join(methods)}")
    if along:
        found.append(f"not told apart along the row: {'; '.join(along)}")
    unsure = inconclusive_differences(
        [*comparable_pairs(cells, table.empty), *within], table.decimals, above=1.0, errors=2.0
    )
    if unsure:
        found.append(f"unsure (difference of one to two standard errors; --paired says more): {'; '.join(unsure)}")
    return found


def _named(names: Sequence[str], most: int = 6) -> str:
    return f"{', '.join(names[:most])}{f' and {len(names) - most} more' if len(names) > most else ''}"
