"""Charts as pictures [3, H, W] in [0, 1], for TensorBoard and figure files, in the style of vaerun.plotting."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaerun.errors import InputError
from vaerun.plotting import (
    COLOURS,
    MEDIUM,
    SMALL,
    TINY,
    default_style,
    disable_mathtext,
    drawable,
    hatch,
    legend_label,
    new_figure,
)

DPI = 110
HEIGHT, MIN_WIDTH, MAX_WIDTH = 3.8, 5.0, 10.0  # inches
MAX_TICKS, MAX_LETTERS = 24, 32  # maximum number and length of the names along the axis

Groups = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Ellipse:
    """An axis-aligned ellipse, drawn as a line: centre (x, y), radii (x, y), index of the colour (None: grey)."""

    centre: tuple[float, float]
    radii: tuple[float, float]
    colour: int | None = None


@dataclass(frozen=True)
class Curve:
    """A line through (x, y) with a band from `low` to `high`, all of one length; values that are not finite are gaps.

    `colour` is the index of its colour; a dashed curve may share that of a solid one.
    """

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: int
    dashed: bool = False


def _shorten(name: str, maximum: int = MAX_LETTERS) -> str:
    """The name on one line of at most `maximum` letters, its middle elided and characters without a glyph as `?`."""
    text = drawable(" ".join(name.split()))
    half = (maximum - 1) // 2
    return text if len(text) <= maximum else f"{text[:half]}…{text[-half:]}"


def _figure(width: float, height: float = HEIGHT) -> tuple[Any, Any]:
    figure = new_figure(width, height, DPI)
    return figure, figure.add_subplot()


def _picture(figure: Any) -> Tensor:
    figure.canvas.draw()
    pixels = torch.frombuffer(bytearray(figure.canvas.buffer_rgba()), dtype=torch.uint8)
    width, height = figure.canvas.get_width_height()
    return pixels.view(height, width, 4)[..., :3].permute(2, 0, 1).float() / 255


def _legend(axes: Any, handles: Sequence[Any], names: Iterable[str]) -> None:
    # Outside the axes, so that it hides nothing.
    labels = [legend_label(_shorten(name)) for name in names]
    legend = axes.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=SMALL, borderaxespad=0.2
    )
    disable_mathtext(legend)


@default_style()
def bar_chart(
    groups: Groups,
    *,
    ylabel: str,
    title: str,
    xlabel: str = "",
    log: bool = False,
    stacked: bool = False,
    errors: Groups | None = None,
) -> Tensor:
    """Bar chart [3, H, W] with a group of bars (or a stacked bar) for each name along the axis.

    Arguments:
        groups: name along the axis -> series -> value. A series has the same colour in all groups, and there is a
            legend for several series; groups may lack some. A value that is not finite, or 0 on a logarithmic axis, is
            written out instead of drawn.
        ylabel, title, xlabel: labels, with units.
        log: use a logarithmic axis.
        stacked: stack the values of a group, negative ones downwards.
        errors: half-lengths of error bars, nested like `groups`; entries may be missing.

    Raises InputError for no values, and for negative values or stacks on a logarithmic axis.
    """
    series = list(dict.fromkeys(name for values in groups.values() for name in values))
    if not series:
        raise InputError("bar_chart: nothing to draw: give at least one value")
    if log and (stacked or any(value < 0 for values in groups.values() for value in values.values())):
        raise InputError("bar_chart: a logarithmic axis allows neither stacks nor negative values: use log=False")
    slots = 1 if stacked else len(series)
    figure_width = min(MAX_WIDTH, max(MIN_WIDTH, 1.5 + 0.1 * len(groups) * (slots + 1)))
    figure, axes = _figure(figure_width + (1.6 if len(series) > 1 else 0))
    if log:
        axes.set_yscale("log")
    handles = []
    width = 0.8 / slots
    up, down = [0.0] * len(groups), [0.0] * len(groups)
    written: list[tuple[int, float, str]] = []
    for number, name in enumerate(series):
        x = [i + (0.0 if stacked else (number - (slots - 1) / 2) * width) for i in range(len(groups))]
        drawn: list[tuple[int, float]] = []
        for i, values in enumerate(groups.values()):
            if name not in values:
                continue
            value = float(values[name])
            if math.isfinite(value) and not (log and value == 0):
                drawn.append((i, value))
            else:
                written.append((i, x[i], f"{value:g}"))
        rows, heights = [i for i, _ in drawn], [value for _, value in drawn]
        bottom = [0.0 if not stacked else (up if value >= 0 else down)[i] for i, value in drawn] if not log else None
        half = None
        if errors is not None:
            half = [errors.get(list(groups)[i], {}).get(name, math.nan) for i in rows]  # NaN: no error bar
        style = {
            "color": COLOURS[number % len(COLOURS)],
            "hatch": hatch(number),
            "edgecolor": "white",
            "linewidth": 0.3 if len(groups) <= 100 else 0.0,  # otherwise the edges hide the bars
            "capsize": 2,
            "error_kw": {"elinewidth": 0.8},
        }
        handles.append(axes.bar([x[i] for i in rows], heights, width, bottom=bottom, yerr=half, **style))
        for i, value in drawn:
            (up if value >= 0 else down)[i] += value
    for i, position, text in written:  # text in place of a bar
        y, transform = (0.02, axes.get_xaxis_transform()) if log else (up[i] if stacked else 0.0, axes.transData)
        axes.text(position, y, f" {text}", rotation=90, ha="center", va="bottom", fontsize=TINY, transform=transform)
    if not log:
        axes.axhline(0, color="black", linewidth=0.6)
    _label_groups(axes, list(groups), figure_width)
    if len(series) > 1:
        _legend(axes, handles, series)
    return _finish(figure, axes, title, xlabel, ylabel)


def _label_groups(axes: Any, names: Sequence[str], width: float) -> None:
    """Names below the bars: thinned out if there are many, slanted if they are long."""
    stride = -(-len(names) // MAX_TICKS)
    ticks = range(0, len(names), stride)
    labels = [_shorten(names[i]) for i in ticks]
    letters = max(len(label) for label in labels) * len(labels)
    slanted = letters > 11 * width  # at font size 8, with gaps, eleven letters fit into an inch
    angle = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(ticks, labels, fontsize=SMALL, parse_math=False, **angle)
    axes.set_xlim(-0.6, len(names) - 0.4)


def _finish(figure: Any, axes: Any, title: str, xlabel: str, ylabel: str) -> Tensor:
    letters = int(11.5 * figure.get_figwidth())  # letters per line at font size 9
    figure.suptitle(textwrap.fill(_shorten(title, 200), letters), fontsize=MEDIUM, parse_math=False)
    axes.set_xlabel(_shorten(xlabel, 80), fontsize=SMALL, parse_math=False)
    axes.set_ylabel(_shorten(ylabel, 80), fontsize=SMALL, parse_math=False)
    axes.tick_params(axis="y", labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    return _picture(figure)


@default_style()
def scatter(
    points: Tensor,
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    labels: Tensor | None = None,
    names: Sequence[str] | None = None,
    ellipses: Sequence[Ellipse] = (),
) -> Tensor:
    """Scatter plot [3, H, W] with equal scales on both axes.

    Arguments:
        points: [N, 2]; those that are not finite are omitted, and the title says how many.
        title, xlabel, ylabel: labels.
        labels: int64 [N], a colour each; None: one colour for all.
        names: of the labels 0, 1, ...; None: their numbers.
        ellipses: lines drawn over the points.

    Raises InputError unless points are [N, 2].
    """
    if points.dim() != 2 or points.shape[1] != 2:
        raise InputError(f"scatter: points must be [N, 2], got {list(points.shape)}")
    from matplotlib import colormaps
    from matplotlib.patches import Ellipse as EllipsePatch

    finite = points.isfinite().all(1).cpu()
    drawn = points.detach().cpu().double()[finite]
    omitted = len(points) - len(drawn)
    figure, axes = _figure(MIN_WIDTH + (0.9 if labels is not None else 0), MIN_WIDTH)
    size = min(16.0, max(2.0, 20_000 / max(1, len(drawn))))  # marker area in points squared, smaller for many points
    classes = [] if labels is None else labels.unique().tolist()
    # The colours of tab10 and tab20 are distinguishable; no larger palette is.
    colormap = "tab10" if len(classes) <= 10 else "tab20" if len(classes) <= 20 else "turbo"
    last = max(classes, default=0)

    def colour(label: int) -> Any:
        return colormaps[colormap](label / max(1, last) if colormap == "turbo" else classes.index(label))

    if labels is None:
        axes.scatter(*drawn.T.numpy(), s=size, color=COLOURS[0], linewidths=0)
    else:
        # In one call and in the order of the images: otherwise the last label would cover the others.
        colours = [colour(label) for label in labels.cpu()[finite].tolist()]
        axes.scatter(*drawn.T.numpy(), s=size, color=colours, linewidths=0)
        stride = -(-len(classes) // 20)
        handles = [axes.scatter([], [], s=18, color=[colour(label)]) for label in classes[::stride]]
        _legend(axes, handles, (str(label) if names is None else names[label] for label in classes[::stride]))
    for ellipse in ellipses:
        width, height = (2 * radius for radius in ellipse.radii)
        edge = "dimgrey" if ellipse.colour is None else colour(ellipse.colour)
        axes.add_patch(EllipsePatch(ellipse.centre, width, height, fill=False, edgecolor=edge, linewidth=1, zorder=3))
    axes.autoscale_view()
    axes.set_aspect("equal", adjustable="datalim")
    axes.tick_params(axis="x", labelsize=SMALL)
    title += f" ({omitted} points that are not finite are omitted)" if omitted else ""
    return _finish(figure, axes, title, xlabel, ylabel)


@default_style()
def line_chart(
    curves: Mapping[str, Curve],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    points: Mapping[str, tuple[float, float]] | None = None,
    enlarged: tuple[float, float] | None = None,
) -> Tensor:
    """Line chart [3, H, W] with a logarithmic x axis and a legend.

    Arguments:
        curves: by name.
        title, xlabel, ylabel: labels, with units.
        points: (x, y) by name, marked in black, with a horizontal line at y.
        enlarged: also show this range of y in a second panel.
    """
    panels = 1 if enlarged is None else 2
    figure = new_figure(1.8 + 4.1 * panels, HEIGHT, DPI)
    handles: dict[str, Any] = {}
    for axes, limits in zip(figure.subplots(1, panels, squeeze=False)[0], (None, enlarged), strict=False):
        axes.set_xscale("log")
        for name, curve in curves.items():
            colour, style = COLOURS[curve.colour], "--" if curve.dashed else "-"
            y, low, high = (
                [v if math.isfinite(v) else math.nan for v in row] for row in (curve.y, curve.low, curve.high)
            )
            axes.fill_between(curve.x, low, high, color=colour, alpha=0.25, linewidth=0)
            handles[name] = axes.plot(curve.x, y, style, color=colour, linewidth=1.4)[0]
        for name, (x, value) in (points or {}).items():
            axes.axhline(value, color="black", linewidth=0.8, linestyle=":")
            handles[name] = axes.plot([x], [value], "k*", markersize=8)[0]
        if limits is not None:
            axes.set_ylim(*limits)
            axes.set_title("the same, enlarged", fontsize=SMALL)
        axes.tick_params(labelsize=SMALL)
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(_shorten(xlabel, 80), fontsize=SMALL, parse_math=False)
    _legend(axes, list(handles.values()), handles)
    return _finish(figure, figure.axes[0], title, xlabel, ylabel)
