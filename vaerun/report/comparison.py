"""Runs compared in a table: rows and columns are settings, cells are means over seeds, next to published numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaerun.errors import InputError
from vaerun.report import captions
from vaerun.report.cells import Cell, Position, deduplicate, has_no_value, sort_positions
from vaerun.report.filters import canonical_argument, filter_runs, known_keys
from vaerun.report.footnotes import collect_footnotes, different_images
from vaerun.report.protocol import AllowedDifferences, check_cell, check_protocol
from vaerun.report.published import Published
from vaerun.report.runs import RunSummary, read_runs
from vaerun.report.table_spec import Options, TableSpec, choose_published, resolve
from vaerun.report.text import clean, is_number


@dataclass
class Comparison:
    """A table of runs.

    Attributes:
        folder: the directory of the compared runs.
        metric: of result.json.
        caption: what the numbers are.
        rows, columns: labels in order.
        cells: (row, column) -> cell, for those with runs or a published number.
        axes: (title of the rows, title of the columns); the latter is '' for a single column.
        empty: label of the column for runs without the column's setting, if there is one.
        steps: column -> value, if all values (except `empty`) are numbers.
        decimals: digits of the metric to print.
        published: numbers to compare with, or None.
        notes: footnotes.
        mixed: whether it contains runs that are not comparable, as permitted by `mix`.
    """

    folder: Path
    metric: str
    caption: str
    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], Cell]
    axes: tuple[str, str]
    empty: str | None
    steps: dict[str, float]
    decimals: int
    published: Published | None
    notes: list[str] = field(default_factory=list)
    mixed: bool = False

    def runs(self) -> list[RunSummary]:
        """The finished runs that have the metric."""
        return [run for cell in self.cells.values() for run in cell.finished]


def compare(folder: Path, spec: TableSpec) -> list[Comparison]:
    """Compare the runs below a folder: a table for each metric, with the same rows and columns.

    A default metric of adaptive importance sampling whose protocol differs between runs is left out with a footnote.

    Raises InputError if the runs are not comparable or lack what `spec` names.
    """
    all_runs, notes = read_runs(folder)
    runs = [run for run in all_runs if run.settings]
    notes += [f"{run.name} has no readable configuration: skipped" for run in all_runs if not run.settings]
    known = known_keys(runs)
    runs = filter_runs(runs, spec.where)
    if not runs:
        raise InputError(f"no run below {clean(folder)} has a readable configuration: nothing to compare")
    options = resolve(spec, runs, known)
    published = choose_published(options, spec.published is not None, runs, notes)
    allowed = AllowedDifferences(spec.mix, runs, options.metrics)
    axes = (*options.rows.keys, *options.columns.keys)
    mixed: dict[str, list[str]] = {}
    for metric in options.metrics:
        try:
            mixed[metric] = check_protocol(runs, metric, axes, allowed)
        except InputError as error:
            if not options.by_default or not mixed:
                raise
            notes.append(f"{metric} omitted: {error}")
    numbers = {} if published is None else _published_numbers(published, spec.where)
    grid = _lay_out(options, runs, published, numbers, allowed)
    tables = []
    for metric, mixed_protocols in mixed.items():
        own = published if published is not None and published.metric == metric else None
        table = _table(folder, metric, options, grid, own, numbers if own else {})
        table.notes = [*mixed_protocols, *grid.mixed, *grid.notes, *notes]
        table.mixed = bool(mixed_protocols or grid.mixed)
        values = [json.loads(text) for r, label in grid.rows.items() if label in table.rows for text in r]
        table.notes = collect_footnotes(table, axes, values)
        tables.append(table)
    if options.by_default and options.metrics == [captions.LIKELIHOOD_METRIC] and tables[0].runs():
        why = "an older version, or evaluation.amis=false"
        tables[0].notes.insert(0, f"no run has {captions.ADAPTIVE_METRIC}, which compares models ({why})")
    for table in tables[1:]:
        table.notes[:0] = different_images(tables[0], table)
    return tables


@dataclass(frozen=True)
class _Grid:
    """The runs by row and column, which all tables share.

    Attributes:
        rows, columns: position -> label, in order.
        cells: (row, column) -> name and runs, none where there is a published number only.
        mixed: footnotes on permitted differences within cells.
        notes: footnotes on duplicates.
    """

    rows: dict[Position, str]
    columns: dict[Position, str]
    cells: dict[tuple[Position, Position], tuple[str, list[RunSummary]]]
    mixed: list[str]
    notes: list[str]


def _lay_out(
    options: Options,
    runs: Sequence[RunSummary],
    published: Published | None,
    numbers: dict[tuple[Position, Position], float],
    allowed: AllowedDifferences,
) -> _Grid:
    rows, columns = options.rows, options.columns
    runs_at: dict[tuple[Position, Position], list[RunSummary]] = {}
    for run in runs:
        runs_at.setdefault((rows.position(run), columns.position(run)), []).append(run)
    planned = [rows.position(run) for run in runs if run.planned]
    row_positions = _order_rows([*planned, *sort_positions(row for row, _ in runs_at)], numbers, published)
    column_positions = sort_positions([*(c for _, c in runs_at), *(c for _, c in numbers)])
    grid = _Grid(rows.labels(row_positions), columns.labels(column_positions, with_key=True), {}, [], [])
    for r, row in grid.rows.items():
        for c, column in grid.columns.items():
            if (r, c) not in runs_at and (r, c) not in numbers:
                continue
            name = row if has_no_value(c) else f"{row} {column}"
            cell_runs = runs_at.get((r, c), [])
            grid.mixed.extend(check_cell(name, cell_runs, (*rows.keys, *columns.keys), ",".join(rows.keys), allowed))
            cell_runs, duplicates = deduplicate(name, cell_runs, allowed)
            grid.notes.extend(duplicates)
            grid.cells[r, c] = name, cell_runs
    return grid


def _table(
    folder: Path,
    metric: str,
    options: Options,
    grid: _Grid,
    published: Published | None,
    numbers: dict[tuple[Position, Position], float],
) -> Comparison:
    """The table of one metric, without footnotes."""
    cells = {}
    for (r, c), (name, runs) in grid.cells.items():
        if runs or (r, c) in numbers:
            cell = Cell(name, grid.rows[r], grid.columns[c], runs, metric, numbers.get((r, c)))
            cells[cell.row, cell.column] = cell
    columns = {c: label for c, label in grid.columns.items() if any(column == label for _, column in cells)}
    finished = [run for cell in cells.values() for run in cell.finished]
    means = [abs(cell.mean) for cell in cells.values() if cell.mean is not None]
    return Comparison(
        folder=folder,
        metric=metric,
        caption=captions.describe(metric, finished) if finished else f"{metric}: no finished run has it yet",
        rows=[label for label in grid.rows.values() if any(row == label for row, _ in cells)],
        columns=list(columns.values()),
        cells=cells,
        axes=(options.rows.title, options.columns.title),
        empty=next((label for c, label in columns.items() if options.columns.keys and has_no_value(c)), None),
        steps=_steps(columns),
        decimals=2 if max(means, default=10) >= 10 else 4,
        published=published,
    )


def _published_numbers(published: Published, where: Sequence[str]) -> dict[tuple[Position, Position], float]:
    """The published numbers that `where` selects, by position."""
    accepted: dict[str, set[str]] = {}
    for condition in where:
        key, _, text = condition.partition("=")
        accepted.setdefault(key.removesuffix(".name"), set()).add(canonical_argument(text))
    return {
        ((row,), (column,)): number
        for (row, column), number in published.values.items()
        if row in accepted.get(published.rows, {row}) and column in accepted.get(published.columns, {column})
    }


def _order_rows(positions: list[Position], numbers: Any, published: Published | None) -> list[Position]:
    """The source's rows in its order, then ours."""
    source_order = [] if published is None else [(row,) for row in published.order]
    present = {*positions, *(r for r, _ in numbers)}
    return [row for row in dict.fromkeys([*source_order, *positions]) if row in present]


def _steps(labels: dict[Position, str]) -> dict[str, float]:
    values = {label: json.loads(p[0]) for p, label in labels.items() if len(p) == 1 and not has_no_value(p)}
    numbers = {label: float(value) for label, value in values.items() if is_number(value)}
    return numbers if len(numbers) == len(values) else {}
