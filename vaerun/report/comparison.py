"""Runs compared in a table: rows and columns are settings, cells are means over seeds, next to published numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaerun.errors import InputError
from vaerun.report import captions
from vaerun.report.cells import Axis, Cell, Position, deduplicate, has_no_value, sort_positions
from vaerun.report.filters import canonical_argument, filter_runs, known_keys
from vaerun.report.footnotes import collect_footnotes
from vaerun.report.protocol import AllowedDifferences, canonical, check_cell, check_protocol
from vaerun.report.published import Published, load_published
from vaerun.report.runs import OK, RunSummary, read_runs
from vaerun.report.text import clean, is_number
from vaerun.text import did_you_mean

ROWS, COLUMNS = "model", "model.inference.steps"  # default axes


@dataclass(frozen=True)
class TableSpec:
    """What to show; None: as in the runs' configuration (sweep.table).

    Attributes:
        rows, columns: dotted settings, several separated by commas; columns `none`: a single column.
        metric: of result.json.
        published: name of published numbers, `none` for none.
        where: conditions KEY=VALUE that select runs; for several values of one key, any of them.
        mix: keys that may differ, although the numbers are then not comparable.
    """

    rows: str | None = None
    columns: str | None = None
    metric: str | None = None
    published: str | None = None
    where: tuple[str, ...] = ()
    mix: tuple[str, ...] = ()


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


def compare(folder: Path, spec: TableSpec) -> Comparison:
    """Compare the runs below a folder. Raises InputError if they are not comparable or lack what `spec` names."""
    all_runs, notes = read_runs(folder)
    runs = [run for run in all_runs if run.settings]
    notes += [f"{run.name} has no readable configuration: skipped" for run in all_runs if not run.settings]
    known = known_keys(runs)
    runs = filter_runs(runs, spec.where)
    if not runs:
        raise InputError(f"no run below {clean(folder)} has a readable configuration: nothing to compare")
    options = _resolve(spec, runs)
    rows, columns = (_axis(options[name]) for name in ("rows", "columns"))
    for axis, requested in ((rows, spec.rows), (columns, spec.columns)):
        for key in axis.keys if requested is not None else ():
            if all(run.setting(key) is None for run in runs):
                raise InputError(f"no run has the setting {clean(key)}.{did_you_mean(key, known)}")
    metric = options["metric"] or _default_metric(runs)
    if spec.metric is not None:
        _check_metric(metric, runs)
    published = _published(options["published"], spec.published is not None, rows, columns, metric, runs, notes)
    allowed = AllowedDifferences(spec.mix, runs, metric)
    axes = (*rows.keys, *columns.keys)
    mixed = check_protocol(runs, metric, axes, allowed)
    runs_at: dict[tuple[Position, Position], list[RunSummary]] = {}
    for run in runs:
        runs_at.setdefault((rows.position(run), columns.position(run)), []).append(run)
    numbers = {} if published is None else _published_numbers(published, spec.where)
    planned = [rows.position(run) for run in runs if run.planned]
    row_positions = _order_rows([*planned, *sort_positions(row for row, _ in runs_at)], numbers, published)
    column_positions = sort_positions([*(c for _, c in runs_at), *(c for _, c in numbers)])
    row_labels, column_labels = _labels(rows, row_positions, False), _labels(columns, column_positions, True)
    cells = {}
    for r in row_positions:
        for c in column_positions:
            if (r, c) not in runs_at and (r, c) not in numbers:
                continue
            name = row_labels[r] if has_no_value(c) else f"{row_labels[r]} {column_labels[c]}"
            cell_runs = runs_at.get((r, c), [])
            mixed += check_cell(name, cell_runs, axes, options["rows"], allowed)
            cell_runs, duplicates = deduplicate(name, cell_runs, allowed)
            notes += duplicates
            cell = Cell(name, row_labels[r], column_labels[c], cell_runs, metric, numbers.get((r, c)))
            cells[cell.row, cell.column] = cell
    empty = next((column_labels[c] for c in column_positions if columns.keys and has_no_value(c)), None)
    finished = [run for cell in cells.values() for run in cell.finished]
    means = [abs(cell.mean) for cell in cells.values() if cell.mean is not None]
    table = Comparison(
        folder=folder,
        metric=metric,
        caption=captions.describe(metric, finished) if finished else f"{metric}: no finished run has it yet",
        rows=[row_labels[r] for r in row_positions],
        columns=[column_labels[c] for c in column_positions],
        cells=cells,
        axes=(rows.title, columns.title),
        empty=empty,
        steps=_steps(column_positions, column_labels),
        decimals=2 if max(means, default=10) >= 10 else 4,
        published=published,
        notes=[*mixed, *notes],
        mixed=bool(mixed),
    )
    table.notes = collect_footnotes(table, axes, [json.loads(text) for r in row_positions for text in r])
    return table


def _axis(keys: str | None) -> Axis:
    if keys is None or keys == "none":
        return Axis(())
    return Axis(tuple(dict.fromkeys(key.strip() for key in keys.split(",") if key.strip())))


def _resolve(spec: TableSpec, runs: Sequence[RunSummary]) -> dict[str, Any]:
    """Fill in what `spec` leaves open: from the runs' configurations if they agree, else by defaults."""
    options: dict[str, Any] = {}
    for name, default in (("rows", ROWS), ("columns", COLUMNS), ("metric", None), ("published", None)):
        requested = getattr(spec, name)
        if requested is not None:
            options[name] = requested
            continue
        configured = {canonical(run.table[name]): run for run in reversed(runs) if name in run.table}
        if len(configured) > 1:
            examples = ", ".join(f"{clean(text, 60)} in {run.name}" for text, run in list(configured.items())[:2])
            raise InputError(
                f"the runs' configurations disagree on sweep.table.{name} ({examples}): choose by --{name}"
            )
        value = next(iter(configured.values())).table[name] if configured else default
        options[name] = value if value is None or isinstance(value, str) else str(value)
    return options


def _default_metric(runs: Sequence[RunSummary]) -> str:
    families = {canonical(run.settings.get("model.family", run.section("protocol").get("family"))) for run in runs}
    return captions.ADVERSARIAL_METRIC if families == {canonical("adversarial")} else captions.LIKELIHOOD_METRIC


def _check_metric(metric: str, runs: Sequence[RunSummary]) -> None:
    finished = [run for run in runs if run.state == OK]
    available = {key for run in finished for key in run.section("metrics")}
    if finished and metric not in available:
        examples = ", ".join(clean(key, 60) for key in sorted(available)[:20])
        raise InputError(
            f"no finished run has the metric {clean(metric)}.{did_you_mean(metric, available)} Available: {examples}"
        )


def _published(
    name: str | None,
    requested: bool,
    rows: Axis,
    columns: Axis,
    metric: str,
    runs: Sequence[RunSummary],
    notes: list[str],
) -> Published | None:
    """The published numbers if they apply to this table; else a footnote, or an error if they were requested."""
    if name is None or name == "none":
        return None
    published = load_published(name)
    mismatch = published.mismatch(rows.keys, columns.keys, metric, [run.setting("data") for run in runs])
    if not mismatch:
        return published
    if requested:
        raise InputError(f"--published {published.name} does not apply: {mismatch}")
    notes.append(f"published numbers ({published.name}) omitted: {mismatch}")
    return None


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


def _labels(axis: Axis, positions: Sequence[Position], with_key: bool) -> dict[Position, str]:
    """A unique label for each position."""
    labels = {position: axis.label(position, with_key) for position in positions}
    count = Counter(labels.values())
    return {p: text if count[text] == 1 else f"{text} #{list(positions).index(p) + 1}" for p, text in labels.items()}


def _steps(positions: Sequence[Position], labels: dict[Position, str]) -> dict[str, float]:
    values = {labels[p]: json.loads(p[0]) for p in positions if len(p) == 1 and not has_no_value(p)}
    numbers = {label: float(value) for label, value in values.items() if is_number(value)}
    return numbers if len(numbers) == len(values) else {}
