"""A comparison as Markdown, CSV and LaTeX. Names come from run directories: each format escapes what it would read."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from vaerun.report import captions
from vaerun.report.cells import OK, STATES, Cell
from vaerun.report.comparison import Comparison
from vaerun.report.cost import cost, timing_warnings
from vaerun.report.significance import PairedTest
from vaerun.report.text import escape_csv, escape_markdown, escape_tex
from vaerun.text import fixed


def _number(value: float | None, digits: int = 2, sign: str = "") -> str:
    return "" if value is None else fixed(value, digits, sign)


def table_rows(table: Comparison) -> list[list[str]]:
    """Head and rows as text: a line for each row, and two more where published numbers stand beside it."""
    corner = f"{table.axes[0]} / {table.axes[1]}" if table.axes[1] else table.axes[0]
    found = [[corner, *([table.metric] if table.columns == ["all"] else table.columns)]]
    for row in table.rows:
        cells = [table.cells.get((row, column)) for column in table.columns]
        found.append([row, *("" if cell is None else cell.format(table.decimals) for cell in cells)])
        if any(cell is not None and cell.published is not None for cell in cells):
            known = ["" if cell is None or cell.published is None else f"{cell.published:.10g}" for cell in cells]
            apart = ["" if cell is None else _number(cell.difference, table.decimals, "+") for cell in cells]
            found.append([f"{row}, published", *known])
            if any(apart):
                found.append([f"{row}, difference", *apart])
    return found


def cost_rows(table: Comparison) -> list[list[str]]:
    """Head and rows of the table of times: a line for each cell with a number."""
    head = [table.axes[0], *([table.axes[1]] if table.axes[1] else []), f"mean {table.metric}", "runs"]
    found = [[*head, "training s", "steps/s", "evaluation s", "on"]]
    for cell in table.cells.values():
        if cell.n:
            took = cost(cell)
            place = [cell.row, *([cell.column] if table.axes[1] else [])]
            own = [*place, _number(cell.mean, table.decimals), str(cell.n)]
            found.append([*own, _number(took.train, 1), _number(took.rate), _number(took.evaluation, 1), took.hardware])
    return found


def _grid(lines: Sequence[Sequence[str]]) -> str:
    escaped = [[escape_markdown(text) for text in line] for line in lines]
    widths = [max(3, *(len(line[i]) for line in escaped)) for i in range(len(escaped[0]))]
    text = ["| " + " | ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)) + " |" for line in escaped]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(text)


def cell_meaning(table: Comparison) -> str:
    """Of a cell."""
    of = "n runs, not of seeds alone (below)" if table.mixed else "n seeds"
    return f"each cell: mean ± sample standard deviation over {of} (n=1 has none)"


def to_markdown(table: Comparison, compared: Sequence[PairedTest] = ()) -> str:
    """The table, what is to be known of it, paired tests, and what the runs took."""
    caption = f"{table.caption}; {cell_meaning(table)}"
    if table.empty is not None and len(table.columns) > 1:
        caption += f"; column {table.empty}: no {table.axes[1]}"
    parts = [escape_markdown(caption, line=True), _grid(table_rows(table))]
    parts.append("\n".join(f"- {escape_markdown(note, line=True)}" for note in table.notes))
    if compared:
        parts += [escape_markdown(_PAIRED), _grid(paired_rows(table, compared))]
    if any(cell.n for cell in table.cells.values()):
        parts += ["Time of a run, mean over the cell's finished runs:", _grid(cost_rows(table))]
        slow = timing_warnings(list(table.cells.values()))
        parts += ["\n".join(f"- {escape_markdown(note, line=True)}" for note in slow)] if slow else []
    return "\n\n".join(part for part in parts if part)


_PAIRED = (
    "Paired by seed: mean difference over the n common seeds with its standard error, Student's t and two-sided p (not "
    "corrected for the number of pairs); then each seed's difference over the same test images, mean ± standard error "
    "over images:"
)


def paired_rows(table: Comparison, compared: Sequence[PairedTest]) -> list[list[str]]:
    """Head and a line for each pair of cells."""
    found = [["pair", "n", "difference", "se", "t", "p", "by seed, over images"]]
    places = table.decimals
    for pair in compared:
        by_seed = []
        for seed, images in pair.images.items():
            if isinstance(images, str):
                by_seed.append(f"{seed}: {images}")
            else:
                by_seed.append(
                    f"{seed}: {fixed(images[0], places, '+')} ± {fixed(images[1], places)} ({images[2]} images)"
                )
        few = len(pair.seeds) < 2
        number = [_number(pair.mean, places, "+"), _number(pair.se, places)]
        test = (
            ["fewer than 2 common seeds", ""] if few else [_number(pair.t), "" if pair.p is None else f"{pair.p:.2g}"]
        )
        if not few and pair.t is None:
            test[0] = "all differences are the same"
        found.append([f"{pair.one.name} - {pair.other.name}", str(len(pair.seeds)), *number, *test, "; ".join(by_seed)])
    return found


def to_csv(table: Comparison) -> str:
    """One line a cell, numbers in full; text that a spreadsheet would read as a formula begins with an apostrophe."""
    runs = table.runs()
    count, split = captions.evaluated_images(table.metric, runs) if runs else ("", "")
    fixed = {
        "rows": table.axes[0],
        "columns": table.axes[1],
        "metric": table.metric,
        "unit": captions.unit(table.metric, runs) if runs else "",
        "split": split,
    }
    fixed |= {
        "images": count,
        "K": captions.importance_samples(runs) if runs else "",
        "mixed": str(table.mixed).lower(),
    }
    lines = [_record(table, cell) | {k: escape_csv(v) for k, v in fixed.items()} for cell in table.cells.values()]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue().rstrip("\n")


def _record(table: Comparison, cell: Cell) -> dict[str, object]:
    took = cost(cell)
    column: object = "" if cell.column == table.empty else escape_csv(cell.column)
    if cell.column in table.steps:
        column = f"{table.steps[cell.column]:.15g}"
    found: dict[str, object] = {"row": escape_csv(cell.row), "column": column}
    found |= {"seeds": escape_csv(" ".join(cell.values)), "n": cell.n, "mean": cell.mean, "sd": cell.sd, "se": cell.se}
    found |= {"published": cell.published, "difference": cell.difference, "runs": len(cell.runs), OK: cell.n}
    found |= {state.replace(" ", "_"): cell.states[state] for state in STATES} | {
        "state": escape_csv(cell.format(table.decimals))
    }
    found |= {"train_seconds": took.train, "steps_per_second": took.rate, "evaluation_seconds": took.evaluation}
    return found | {"hardware": escape_csv(took.hardware)}


def to_latex(table: Comparison) -> str:
    """A `tabular` and its notes for a document without packages, to be read by `\\input`."""
    caption = escape_tex(f"{table.caption}; {cell_meaning(table)}")
    text = [*_tabular(table_rows(table)), "", rf"\par\smallskip{{\footnotesize {caption}.\par"]
    text += [rf"{escape_tex(note)}.\par" for note in [*table.notes, *timing_warnings(list(table.cells.values()))]]
    text += [
        "}",
        r"\par\smallskip Time of a run, mean over the cell's finished runs:\par",
        *_tabular(cost_rows(table)),
    ]
    return "\n".join(text)


def _tabular(lines: Sequence[Sequence[str]]) -> list[str]:
    head, *body = [" & ".join(escape_tex(text) for text in line) + r" \\" for line in lines]
    columns = "l" + "r" * (len(lines[0]) - 1)
    return [rf"\begin{{tabular}}{{{columns}}}", r"\hline", head, r"\hline", *body, r"\hline", r"\end{tabular}"]
