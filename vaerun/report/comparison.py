"""Runs as a table: rows and columns are settings, a cell is the mean over seeds, published numbers stand beside."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaerun.errors import InputError
from vaerun.report import captions
from vaerun.report.cells import Axis, Cell, deduplicate, sort_positions, has_no_value
from vaerun.report.filters import canonical_argument, filter_runs, known_keys
from vaerun.report.footnotes import collect_footnotes
from vaerun.report.protocol import AllowedDifferences, canonical, check_cell, check_protocol
from vaerun.report.published import Published, load
from vaerun.report.runs import OK, Run, read_runs
from vaerun.report.text import clean, is_number
from vaerun.text import did_you_mean

ROWS, COLUMNS = "model", "model.inference.steps"  # where no configuration says more


@dataclass(frozen=True)
class TableSpec:
    """What is asked for; None: what the runs' configuration says (sweep.table).

    Attributes:
        rows, columns: dotted settings, several separated by commas; columns `none`: a single column.
        metric: of result.json.
        published: name of published numbers, `none` for none.
        where: KEY=VALUE, that runs must have to be looked at; of one key, one of its values.
        mix: keys that may differ although numbers then do not compare.
    """

    rows: str | None = None
    columns: str | None = None
    metric: str | None = None
    published: str | None = None
    where: tuple[str, ...] = ()
    mix: tuple[str, ...] = ()


@dataclass
class Comparison:
    """The table.

    Attributes:
        folder: whose runs it is of.
        metric: of result.json.
        caption: what the numbers are.
        rows, columns: labels, in order; cells by (row, column), for those that have runs or a published number.
        axes: (title of the rows, title of the columns); the columns' is '' for a single one.
        empty: the label of the column without a value, if there is one.
        steps: columns' places as numbers where all (but `empty`) are numbers.
        decimals: to print the metric with.
        notes: lines to stand below.
        mixed: whether runs that do not compare stand in it, as asked for.
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

    def runs(self) -> list[Run]:
        """Those that are finished and have the metric."""
        return [run for cell in self.cells.values() for run in cell.finished]


def compare(folder: Path, question: TableSpec) -> Comparison:
    """The table of the runs below a folder. Raises InputError where they do not compare or do not answer."""
    everything, notes = read_runs(folder)
    runs = [run for run in everything if run.settings]
    notes += [f"{run.name} has no configuration that can be read: left out" for run in everything if not run.settings]
    known = known_keys(runs)
    runs = filter_runs(runs, question.where)
    if not runs:
        raise InputError(f"no run below {clean(folder)} has a configuration that can be read: nothing to compare")
    asked = _from_configuration(runs, question)
    rows, columns = (_axis(asked[name]) for name in ("rows", "columns"))
    for axis, given in ((rows, question.rows), (columns, question.columns)):
        for key in axis.keys if given is not None else ():
            if all(run.setting(key) is None for run in runs):
                raise InputError(f"no run has a value of {clean(key)}.{did_you_mean(key, known)}")
    metric = asked["metric"] or _usual_metric(runs)
    _check_metric(metric, runs, question.metric is not None)
    published = _published(asked["published"], question.published is not None, rows, columns, metric, runs, notes)
    mix = AllowedDifferences(question.mix, runs, metric)
    axes = (*rows.keys, *columns.keys)
    mixed = check_protocol(runs, metric, axes, mix)
    places: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Run]] = {}
    for run in runs:
        places.setdefault((rows.position(run), columns.position(run)), []).append(run)
    numbers = {} if published is None else _beside(published, question.where)
    planned = [rows.position(run) for run in runs if run.planned]
    own = [*planned, *sort_positions(place for place, _ in places)]
    row_places = _rows_in_order(own, numbers, published)
    column_places = sort_positions([*(c for _, c in places), *(c for _, c in numbers)])
    row_labels, column_labels = _labels(rows, row_places, False), _labels(columns, column_places, True)
    cells = {}
    for r in row_places:
        for c in column_places:
            if (r, c) not in places and (r, c) not in numbers:
                continue
            name = row_labels[r] if has_no_value(c) else f"{row_labels[r]} {column_labels[c]}"
            here = places.get((r, c), [])
            mixed += check_cell(name, here, axes, asked["rows"], mix)
            here, twice = deduplicate(name, here, mix)
            notes += twice
            cell = Cell(name, row_labels[r], column_labels[c], here, metric, numbers.get((r, c)))
            cells[cell.row, cell.column] = cell
    empty = next((column_labels[c] for c in column_places if columns.keys and has_no_value(c)), None)
    finished = [run for cell in cells.values() for run in cell.finished]
    means = [abs(cell.mean) for cell in cells.values() if cell.mean is not None]
    table = Comparison(
        folder=folder,
        metric=metric,
        caption=captions.describe(metric, finished) if finished else f"{metric}: no finished run has it yet",
        rows=[row_labels[r] for r in row_places],
        columns=[column_labels[c] for c in column_places],
        cells=cells,
        axes=(rows.title, columns.title),
        empty=empty,
        steps=_steps(column_places, column_labels),
        decimals=2 if max(means, default=10) >= 10 else 4,
        published=published,
        notes=[*mixed, *notes],
        mixed=bool(mixed),
    )
    table.notes = collect_footnotes(table, axes, [row for r in row_places for row in (json.loads(t) for t in r)])
    return table


def _axis(keys: str | None) -> Axis:
    if keys is None or keys == "none":
        return Axis(())
    return Axis(tuple(dict.fromkeys(key.strip() for key in keys.split(",") if key.strip())))


def _from_configuration(runs: Sequence[Run], question: TableSpec) -> dict[str, Any]:
    """What is not asked for is what the runs' configuration says, if they agree."""
    found: dict[str, Any] = {}
    for name, otherwise in (("rows", ROWS), ("columns", COLUMNS), ("metric", None), ("published", None)):
        given = getattr(question, name)
        if given is not None:
            found[name] = given
            continue
        said = {canonical(run.table[name]): run for run in reversed(runs) if name in run.table}
        if len(said) > 1:
            (one, here), (other, there) = list(said.items())[:2]
            texts = f"{clean(one, 60)} in {here.name}, {clean(other, 60)} in {there.name}"
            raise InputError(f"the runs' configurations disagree on sweep.table.{name} ({texts}): say --{name}")
        value = next(iter(said.values())).table[name] if said else otherwise
        found[name] = value if value is None or isinstance(value, str) else str(value)
    return found


def _usual_metric(runs: Sequence[Run]) -> str:
    families = {canonical(run.settings.get("model.family", run.section("protocol").get("family"))) for run in runs}
    return captions.ADVERSARIAL if families == {canonical("adversarial")} else captions.LIKELIHOOD


def _check_metric(metric: str, runs: Sequence[Run], given: bool) -> None:
    finished = [run for run in runs if run.state == OK]
    there = {key for run in finished for key in run.section("metrics")}
    if given and finished and metric not in there:
        some = ", ".join(clean(key, 60) for key in sorted(there)[:20])
        raise InputError(
            f"no finished run has the metric {clean(metric)}.{did_you_mean(metric, there)} There are: {some}"
        )


def _published(
    name: str | None, given: bool, rows: Axis, columns: Axis, metric: str, runs: Sequence[Run], notes: list[str]
) -> Published | None:
    """The published numbers, if they are of this table; if not, an error where they were asked for, else a note."""
    if name is None or name == "none":
        return None
    found = load(name)
    why = found.mismatch(rows.keys, columns.keys, metric, [run.setting("data") for run in runs])
    if not why:
        return found
    if given:
        raise InputError(f"--published {found.name} does not fit: {why}")
    notes.append(f"published numbers ({found.name}) are left out: {why}")
    return None


def _beside(published: Published, where: Sequence[str]) -> dict[tuple[tuple[str, ...], tuple[str, ...]], float]:
    """The published numbers by place, those that --where leaves out left out."""
    wanted: dict[str, set[str]] = {}
    for condition in where:
        key, _, text = condition.partition("=")
        wanted.setdefault(key.removesuffix(".name"), set()).add(canonical_argument(text))
    return {
        ((row,), (column,)): number
        for (row, column), number in published.values.items()
        if row in wanted.get(published.rows, {row}) and column in wanted.get(published.columns, {column})
    }


def _rows_in_order(own: list[tuple[str, ...]], numbers: Any, published: Published | None) -> list[tuple[str, ...]]:
    """As the source has them, then as they come."""
    first = [] if published is None else [(row,) for row in published.order]
    there = {*own, *(r for r, _ in numbers)}
    return [row for row in dict.fromkeys([*first, *own]) if row in there]


def _labels(axis: Axis, places: Sequence[tuple[str, ...]], head: bool) -> dict[tuple[str, ...], str]:
    """A label for each place, no two the same."""
    found = {place: axis.label(place, head) for place in places}
    count = Counter(found.values())
    return {p: text if count[text] == 1 else f"{text} #{list(places).index(p) + 1}" for p, text in found.items()}


def _steps(places: Sequence[tuple[str, ...]], labels: dict[tuple[str, ...], str]) -> dict[str, float]:
    values = {labels[p]: json.loads(p[0]) for p in places if len(p) == 1 and not has_no_value(p)}
    numbers = {label: float(value) for label, value in values.items() if is_number(value)}
    return numbers if len(numbers) == len(values) else {}
