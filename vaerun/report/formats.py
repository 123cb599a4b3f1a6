"""A comparison, one table per metric, as Markdown, CSV and LaTeX.

Names come from run directories and are escaped for each format.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from vaerun.report import captions
from vaerun.report.cells import OK, STATES, Cell
from vaerun.report.comparison import Comparison
from vaerun.report.cost import mean_cost, timing_warnings
from vaerun.report.footnotes import unreliable_share
from vaerun.report.significance import PairedTest
from vaerun.report.text import escape_csv, escape_markdown, escape_tex
from vaerun.text import format_fixed


def _number(value: float | None, digits: int = 2, sign: str = "") -> str:
    return "" if value is None else format_fixed(value, digits, sign)


def table_rows(table: Comparison) -> list[list[str]]:
    """Header and rows as text; a row with published numbers is followed by those and the differences."""
    corner = f"{table.axes[0]} / {table.axes[1]}" if table.axes[1] else table.axes[0]
    lines = [[corner, *([table.metric] if table.columns == ["all"] else table.columns)]]
    for row in table.rows:
        cells = [table.cells.get((row, column)) for column in table.columns]
        lines.append([row, *("" if cell is None else cell.format(table.decimals) for cell in cells)])
        if any(cell is not None and cell.published is not None for cell in cells):
            published = ["" if cell is None or cell.published is None else f"{cell.published:.10g}" for cell in cells]
            differences = ["" if cell is None else _number(cell.difference, table.decimals, "+") for cell in cells]
            lines.append([f"{row}, published", *published])
            if any(differences):
                lines.append([f"{row}, difference", *differences])
    return lines


def cost_rows(tables: Sequence[Comparison]) -> list[list[str]]:
    """Header and rows of the table of times, a row for each cell with a mean of any metric."""
    rows, columns = tables[0].axes
    header = [rows, *([columns] if columns else []), *(f"mean {table.metric}" for table in tables)]
    lines = [[*header, "runs", "training s", "steps/s", "evaluation s", "on"]]
    for key in dict.fromkeys(key for table in tables for key in table.cells):
        means = [(table.cells[key].mean if key in table.cells else None, table.decimals) for table in tables]
        cell = max((table.cells[key] for table in tables if key in table.cells), key=lambda cell: cell.n)
        if cell.n:
            times = mean_cost(cell)
            line = [cell.row, *([cell.column] if columns else []), *(_number(*mean) for mean in means), str(cell.n)]
            line += [_number(times.train, 1), _number(times.rate), _number(times.evaluation, 1), times.hardware]
            lines.append(line)
    return lines


def _grid(lines: Sequence[Sequence[str]]) -> str:
    escaped = [[escape_markdown(text) for text in line] for line in lines]
    widths = [max(3, *(len(line[i]) for line in escaped)) for i in range(len(escaped[0]))]
    text = ["| " + " | ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)) + " |" for line in escaped]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(text)


def cell_meaning(table: Comparison) -> str:
    """What a cell's numbers are."""
    sample = "n runs that differ in more than their seeds (see below)" if table.mixed else "n seeds"
    return f"each cell: mean ± sample standard deviation over {sample} (n=1 has none)"


def to_markdown(tables: Sequence[Comparison], compared: Sequence[PairedTest] = ()) -> str:
    """The tables with their captions and footnotes, paired tests and times."""
    parts = []
    common = _common_notes(tables)
    for table in tables:
        caption = f"{table.caption}; {cell_meaning(table)}"
        if table.empty is not None and len(table.columns) > 1:
            caption += f"; column {table.empty}: no {table.axes[1]}"
        parts += [escape_markdown(caption, line=True), _grid(table_rows(table))]
        parts.append(_list([note for note in table.notes if note not in common]))
    parts += [f"For all {len(tables)} tables:", _list(common)] if common else []
    parts += [escape_markdown(_PAIRED)] if compared else []
    for table in tables:
        if tests := [test for test in compared if test.a.metric == table.metric]:
            parts += [f"{escape_markdown(table.metric)}:", _grid(paired_rows(table, tests))]
    if any(table.runs() for table in tables):
        parts += ["Time per run, mean over the cell's finished runs:", _grid(cost_rows(tables))]
        parts.append(_list(timing_warnings(list(tables[0].cells.values()))))
    return "\n\n".join(part for part in parts if part)


def _common_notes(tables: Sequence[Comparison]) -> list[str]:
    """The footnotes that several tables share."""
    if len(tables) == 1:
        return []
    return [note for note in tables[0].notes if all(note in table.notes for table in tables)]


def _list(notes: Sequence[str]) -> str:
    return "\n".join(f"- {escape_markdown(note, line=True)}" for note in notes)


_PAIRED = (
    "Paired by seed: mean difference over the n common seeds with its standard error, Student's t and two-sided p (not "
    "corrected for the number of pairs); then each seed's difference over the same test images, mean ± standard error "
    "over images."
)


def paired_rows(table: Comparison, compared: Sequence[PairedTest]) -> list[list[str]]:
    """Header and a row for each pair of cells."""
    lines = [["pair", "n", "difference", "se", "t", "p", "by seed, over images"]]
    decimals = table.decimals
    for pair in compared:
        by_seed = []
        for seed, images in pair.images.items():
            if isinstance(images, str):
                by_seed.append(f"{seed}: {images}")
            else:
                mean, error, count = images
                text = f"{format_fixed(mean, decimals, '+')} ± {format_fixed(error, decimals)}"
                by_seed.append(f"{seed}: {text} ({count} images)")
        if len(pair.seeds) < 2:
            test = ["fewer than 2 common seeds", ""]
        elif pair.t is None:
            test = ["all differences are equal", "" if pair.p is None else f"{pair.p:.2g}"]
        else:
            test = [_number(pair.t), "" if pair.p is None else f"{pair.p:.2g}"]
        difference = [_number(pair.mean, decimals, "+"), _number(pair.se, decimals)]
        name = f"{pair.a.name} - {pair.b.name}"
        lines.append([name, str(len(pair.seeds)), *difference, *test, "; ".join(by_seed)])
    return lines


def to_csv(tables: Sequence[Comparison]) -> str:
    """One line per metric and cell with all digits.

    Text that a spreadsheet would take for a formula starts with an apostrophe.
    """
    lines = [line for table in tables for line in _csv_lines(table)]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue().rstrip("\n")


def _csv_lines(table: Comparison) -> list[dict[str, object]]:
    runs = table.runs()
    count, split = captions.evaluated_images(table.metric, runs) if runs else ("", "")
    shared = {
        "rows": table.axes[0],
        "columns": table.axes[1],
        "metric": table.metric,
        "unit": captions.unit(table.metric, runs) if runs else "",
        "split": split,
        "images": count,
        "K": captions.samples(table.metric, runs) if runs else "",
        "mixed": str(table.mixed).lower(),
    }
    meaning = {"meaning": captions.title(table.metric, runs) if runs else ""}
    return [
        _csv_row(table, cell)
        | {k: escape_csv(v) for k, v in shared.items()}
        | {"pareto_k_unreliable": unreliable_share(cell)}
        | {k: escape_csv(v) for k, v in meaning.items()}
        for cell in table.cells.values()
    ]


def _csv_row(table: Comparison, cell: Cell) -> dict[str, object]:
    times = mean_cost(cell)
    column: object = "" if cell.column == table.empty else escape_csv(cell.column)
    if cell.column in table.steps:
        column = f"{table.steps[cell.column]:.15g}"
    line: dict[str, object] = {"row": escape_csv(cell.row), "column": column}
    line |= {"seeds": escape_csv(" ".join(cell.values)), "n": cell.n, "mean": cell.mean, "sd": cell.sd, "se": cell.se}
    line |= {"published": cell.published, "difference": cell.difference, "runs": len(cell.runs), OK: cell.n}
    line |= {state.replace(" ", "_"): cell.states[state] for state in STATES} | {
        "state": escape_csv(cell.format(table.decimals))
    }
    line |= {"train_seconds": times.train, "steps_per_second": times.rate, "evaluation_seconds": times.evaluation}
    return line | {"hardware": escape_csv(times.hardware)}


def to_latex(tables: Sequence[Comparison]) -> str:
    """A `tabular` per metric with its notes, for `\\input`; needs no packages."""
    text = []
    common = _common_notes(tables)
    for table in tables:
        notes = [note for note in table.notes if note not in common]
        text += [*_tabular(table_rows(table)), "", rf"\par\smallskip{{\footnotesize {_tex_caption(table)}.\par"]
        text += [*(rf"{escape_tex(note)}.\par" for note in notes), "}", ""]
    notes = [*common, *timing_warnings(list(tables[0].cells.values()))]
    if notes:
        text += [r"{\footnotesize", *(rf"{escape_tex(note)}.\par" for note in notes), "}"]
    text += [r"\par\smallskip Time per run, mean over the cell's finished runs:\par", *_tabular(cost_rows(tables))]
    return "\n".join(text)


def _tex_caption(table: Comparison) -> str:
    return escape_tex(f"{table.caption}; {cell_meaning(table)}")


def _tabular(lines: Sequence[Sequence[str]]) -> list[str]:
    head, *body = [" & ".join(escape_tex(text) for text in line) + r" \\" for line in lines]
    columns = "l" + "r" * (len(lines[0]) - 1)
    return [rf"\begin{{tabular}}{{{columns}}}", r"\hline", head, r"\hline", *body, r"\hline", r"\end{tabular}"]
