"""A comparison as a figure: per metric grouped bars, as in the authors' slides, and the metric against training time.

Drawn in the style of vaerun.plotting.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from vaerun.plotting import (
    COLOURS,
    LARGE,
    MEDIUM,
    SMALL,
    TINY,
    default_style,
    disable_mathtext,
    drawable,
    hatch,
    legend_label,
    new_figure,
    png_bytes,
)
from vaerun.report import captions
from vaerun.report.cells import Cell
from vaerun.report.comparison import Comparison
from vaerun.report.cost import mean_cost
from vaerun.report.footnotes import different_images, reliability
from vaerun.report.text import clean
from vaerun.text import HUGE, format_fixed

MARKERS = "osD^vP*X"
DPI = 130
HEIGHT, MAXIMUM_WIDTH = 5.6, 24.0  # inches, the height per metric
CAPTION_LINES = 5  # per metric, at most
PUBLISHED = "published"


@default_style()
def to_png(tables: Sequence[Comparison]) -> bytes:
    """The figure as a PNG file."""
    order = list(dict.fromkeys(row for table in tables for row in table.rows))
    groups = max(len([c for c in table.columns if c != table.empty] or table.columns) for table in tables)
    width = min(MAXIMUM_WIDTH, 11.0 + 0.1 * groups * len(order))
    figure = new_figure(width, HEIGHT * len(tables), DPI)
    characters = int(width * 14)  # characters of font size SMALL per line
    lines = []
    panels = figure.subplots(len(tables), 2, width_ratios=(3, 2), squeeze=False)
    for table, (bars, times) in zip(tables, panels, strict=True):
        outside = _bars(bars, table, order, [other for other in tables if _same_scale(table, other)])
        _times(times, table, order)
        warnings = [*reliability(table), *different_images(tables[0], table)]
        lines += textwrap.wrap("; ".join([f"{table.caption}{outside}", *warnings]), characters)[:CAPTION_LINES]
    lines += textwrap.wrap(
        "bars: mean ± sample standard deviation over seeds; the axis does not start at 0", characters
    )
    _legend(figure, panels[:, 0], order)
    figure.supxlabel(_shown("\n".join(lines)), fontsize=SMALL, parse_math=False)
    return png_bytes(figure)


def _same_scale(a: Comparison, b: Comparison) -> bool:
    """Whether both are estimates of log p(x) of the same images, which are drawn to the same scale."""
    estimates = {captions.LIKELIHOOD_METRIC, captions.ADAPTIVE_METRIC}
    if a is b or not {a.metric, b.metric} <= estimates or not a.runs() or not b.runs():
        return a is b
    scales = [(captions.evaluated_images(t.metric, t.runs()), captions.unit(t.metric, t.runs())) for t in (a, b)]
    return scales[0] == scales[1]


def _legend(figure: Any, panels: Sequence[Any], order: Sequence[str]) -> None:
    """The rows that have a number, in their order, and the published numbers."""
    drawn: dict[str, Any] = {}
    for axes in panels:
        handles, names = axes.get_legend_handles_labels()
        drawn |= dict(zip(names, handles, strict=True))
    shown = [n for n in dict.fromkeys([*map(_shown, order), PUBLISHED]) if n in drawn]
    if not shown:
        return
    columns = int(figure.get_figwidth() * 11 / (6 + max(map(len, shown))))  # at size MEDIUM, eleven letters per inch
    legend = figure.legend(
        [drawn[name] for name in shown],
        shown,
        frameon=False,
        fontsize=MEDIUM,
        loc="outside upper center",
        ncols=max(1, min(columns, len(shown))),
    )
    disable_mathtext(legend)


def _shown(text: str) -> str:
    return legend_label(drawable(text))


def _constant_rows(table: Comparison) -> list[str]:
    """Rows that only have the column without a value: drawn as horizontal lines."""
    if table.empty is None or len(table.columns) == 1:
        return []
    columns = {row: {column for r, column in table.cells if r == row} for row in table.rows}
    return [row for row in table.rows if columns[row] == {table.empty}]


def _set_limits(axes: Any, tables: Sequence[Comparison]) -> None:
    """Make the axis span our numbers with their error bars; the longest bar is about five times the shortest."""
    finished = [cell for table in tables for cell in table.cells.values() if cell.mean is not None]
    low = min((cell.mean or 0.0) - (cell.sd or 0.0) for cell in finished)
    high = max((cell.mean or 0.0) + (cell.sd or 0.0) for cell in finished)
    span = (high - low) or max(abs(high), 1.0) * 0.1
    axes.set_ylim(low - 0.25 * span, high + 0.12 * span)


def _bars(axes: Any, table: Comparison, order: Sequence[str], same_scale: Sequence[Comparison]) -> str:
    """Draw the bars; return a remark for the caption on published numbers outside the axis, or ''.

    Arguments:
        order: the rows of all tables, which number the colours.
        same_scale: the tables, this one among them, whose axes have the same limits.
    """
    meaning = captions.title(table.metric, table.runs()) if table.runs() else table.metric
    title = meaning if meaning != table.metric else f"{table.metric} by {table.axes[1] or table.axes[0]}"
    axes.set_title(_shown(title), fontsize=LARGE, parse_math=False)
    if not table.runs():
        axes.text(0.5, 0.5, "no finished run yet", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return ""
    unit = captions.unit(table.metric, table.runs()) or table.metric
    name = table.metric if meaning != table.metric and unit != table.metric else ""
    axes.set_ylabel(_shown(f"{name}{', ' if name else ''}{unit} (not from 0)"), fontsize=MEDIUM, parse_math=False)
    _set_limits(axes, same_scale)
    floor, ceiling = axes.get_ylim()
    constant = _constant_rows(table)
    series = [row for row in table.rows if row not in constant]
    groups = [column for column in table.columns if any((row, column) in table.cells for row in series)]
    width = 0.84 / max(1, len(series))
    published: list[tuple[float, float]] = []
    for index, row in enumerate(series):
        offset = (index - (len(series) - 1) / 2) * width
        cells = [(group + offset, table.cells[row, c]) for group, c in enumerate(groups) if (row, c) in table.cells]
        published += [(x, cell.published) for x, cell in cells if cell.published is not None]
        _bar_series(axes, table, order, row, cells, width)
    for row in constant:
        cell, colour = table.cells[row, table.empty or ""], _colour(order, row)
        if cell.mean is not None:
            text, coordinates = format_fixed(cell.mean, 1 if table.decimals == 2 else 4), axes.get_yaxis_transform()
            axes.annotate(text, (0, cell.mean), (2, 3), coordinates, "offset points", fontsize=SMALL, color=colour)
            axes.axhline(cell.mean, color=colour, linewidth=1.6, label=_shown(row), zorder=3)
            low, high = cell.mean - (cell.sd or 0.0), cell.mean + (cell.sd or 0.0)
            axes.axhspan(low, high, color=colour, alpha=0.2, linewidth=0)
        if cell.published is not None:
            published.append((-0.5, cell.published))
    axes.set_xticks(range(len(groups)), [_shown(g) for g in groups], fontsize=MEDIUM, parse_math=False)
    axes.set_xlim(-0.8 if constant else -0.55, max(1, len(groups)) - 0.45)
    axes.set_ylim(floor, ceiling)
    _use_plain_numbers(axes)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
    return _mark_published(axes, published, floor, ceiling)


def _use_plain_numbers(axes: Any) -> None:
    """Label the axis with all digits, so that they can be compared, unless the numbers are huge."""
    huge = max(map(abs, axes.get_ylim())) >= HUGE
    axes.ticklabel_format(axis="y", useOffset=False, style="scientific" if huge else "plain")


def _bar_series(
    axes: Any, table: Comparison, order: Sequence[str], row: str, cells: list[tuple[float, Cell]], width: float
) -> None:
    """Draw the bars of one row, each with its number or the state of its runs."""
    floor, colour = axes.get_ylim()[0], _colour(order, row)
    known = [(x, cell, cell.mean) for x, cell in cells if cell.mean is not None]
    style = {"color": colour, "edgecolor": "white", "linewidth": 0.4, "hatch": hatch(order.index(row))}
    if known:
        heights = [mean - floor for _, _, mean in known]
        axes.bar([x for x, _, _ in known], heights, width, bottom=floor, label=_shown(row), **style)
    for x, cell, mean in known:
        if cell.sd:
            axes.errorbar(x, mean, yerr=cell.sd, fmt="none", ecolor="black", elinewidth=1, capsize=2)
        count = f" ({cell.n} of {len(cell.runs)})" if cell.n < len(cell.runs) else ""
        number = f"{format_fixed(mean, 1 if table.decimals == 2 else 4)}{count}"
        _write_in_bar(axes, x, floor, number, width, "white" if _is_dark(colour) else "black")
    for x, cell in cells:
        if cell.mean is None:
            _write_in_bar(axes, x, floor, clean(cell.format(table.decimals), 24), width)


def _mark_published(axes: Any, published: list[tuple[float, float]], floor: float, ceiling: float) -> str:
    """Draw hollow markers for the published numbers within the axis; return a remark on the others, or ''."""
    inside = [(x, y) for x, y in published if floor <= y <= ceiling]
    outside = [y for _, y in published if not floor <= y <= ceiling]
    if inside:
        axes.plot(*zip(*inside, strict=True), "o", mfc="none", mec="black", markersize=5, label=PUBLISHED, zorder=4)
    if not outside:
        return ""
    span = f"{min(outside):g} to {max(outside):g}" if len(outside) > 1 else f"{outside[0]:g}"
    return f"; published numbers outside the axis: {len(outside)} of {len(published)} ({span})"


def _is_dark(colour: str) -> bool:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140


def _write_in_bar(axes: Any, x: float, floor: float, text: str, width: float, colour: str = "dimgrey") -> None:
    size = max(5.0, min(8.0, 46 * width))
    axes.annotate(
        _shown(text), (x, floor), (0, 4), textcoords="offset points", rotation=90, ha="center", va="bottom",
        fontsize=size, color=colour, parse_math=False, zorder=5,
    )  # fmt: skip


def _colour(order: Sequence[str], row: str) -> str:
    return COLOURS[order.index(row) % len(COLOURS)]


def _times(axes: Any, table: Comparison, order: Sequence[str]) -> None:
    """Plot the metric against training seconds, one point per cell; the points of a row are joined."""
    from matplotlib.ticker import LogLocator, NullLocator

    points = f" (points: {table.axes[1]})" if table.steps else ""
    axes.set_title(_shown(f"{table.metric} against training time{points}"), fontsize=LARGE, parse_math=False)
    axes.set_xlabel("training, seconds a run (mean over seeds)", fontsize=MEDIUM)
    seconds: list[float] = []
    for row in table.rows:
        cells = [table.cells[row, c] for c in table.columns if (row, c) in table.cells]
        known = [
            (time, cell) for cell in cells if (time := mean_cost(cell).train) is not None and cell.mean is not None
        ]
        if not known:
            continue
        x, y = [time for time, _ in known], [cell.mean for _, cell in known]
        seconds += x
        style = {"color": _colour(order, row), "marker": MARKERS[order.index(row) % len(MARKERS)]}
        axes.errorbar(x, y, yerr=[cell.sd or 0.0 for _, cell in known], linewidth=0.8, markersize=5, capsize=2, **style)
        for time, cell in known:
            use_row_name = cell.column == table.empty or len(table.columns) == 1
            name = cell.row if use_row_name else f"{table.steps[cell.column]:g}" if table.steps else cell.column
            if len(name) > 12:  # would cover others; the legend has its colour
                continue
            axes.annotate(
                _shown(name), (time, cell.mean), (4, 4), textcoords="offset points", fontsize=TINY, parse_math=False
            )
    if not seconds:
        axes.text(0.5, 0.5, "no times recorded", ha="center", va="center", transform=axes.transAxes)
        return
    if min(seconds) > 0 and max(seconds) / min(seconds) > 5:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(min(seconds) / 1.3, max(seconds) * 1.4)
    else:
        axes.set_xlim(0, 1.12 * max(seconds) or 1.0)
    _use_plain_numbers(axes)
    axes.grid(linewidth=0.4, alpha=0.5)
