"""Small charts as pictures [3, H, W] in [0, 1], so that TensorBoard and files take them like any other picture.

Drawn in the style of vaerun.plotting.
"""

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
MAX_TICKS, MAX_LETTERS = 24, 32  # at most so many names along the axis, of so many letters

Groups = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Ellipse:
    """An ellipse along the axes, to be drawn as a line: centre (x, y), radii (x, y), colour's number or None: grey."""

    centre: tuple[float, float]
    radii: tuple[float, float]
    colour: int | None = None


def _shorten(name: str, most: int = MAX_LETTERS) -> str:
    """The name as it can be drawn: one line, at most so many letters (the middle left out), unknown ones as `?`."""
    known = drawable(" ".join(name.split()))
    half = (most - 1) // 2
    return known if len(known) <= most else f"{known[:half]}…{known[-half:]}"


def _figure(width: float, height: float = HEIGHT) -> tuple[Any, Any]:
    figure = new_figure(width, height, DPI)
    return figure, figure.add_subplot()


def _picture(figure: Any) -> Tensor:
    figure.canvas.draw()
    pixels = torch.frombuffer(bytearray(figure.canvas.buffer_rgba()), dtype=torch.uint8)
    width, height = figure.canvas.get_width_height()
    return pixels.view(height, width, 4)[..., :3].permute(2, 0, 1).float() / 255


def _legend(axes: Any, handles: Sequence[Any], names: Iterable[str]) -> None:
    # Beside the axes, where it hides nothing.
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
    """Bars [3, H, W], one group of bars side by side (or one stacked bar) for each name along the axis.

    Arguments:
        groups: name along the axis -> series -> value. A series has one colour in all groups and a legend where there
            are several; a group may lack some. A value that is not finite, or is 0 on a logarithmic axis, has no bar
            but is written out.
        ylabel, title, xlabel: say what is shown and its units.
        log: a logarithmic axis.
        stacked: add up each group's values, those below 0 downwards.
        errors: half-lengths of error bars, as `groups`; what is missing has none.

    Raises InputError for no groups, for values below 0 on a logarithmic axis, and for a stack on one.
    """
    series = list(dict.fromkeys(name for values in groups.values() for name in values))
    if not series:
        raise InputError("bar_chart: there is nothing to draw: give at least one value")
    if log and (stacked or any(value < 0 for values in groups.values() for value in values.values())):
        raise InputError("bar_chart: a logarithmic axis takes neither stacks nor values below 0: use log=False")
    slots = 1 if stacked else len(series)
    wide = min(MAX_WIDTH, max(MIN_WIDTH, 1.5 + 0.1 * len(groups) * (slots + 1)))
    figure, axes = _figure(wide + (1.6 if len(series) > 1 else 0))
    if log:
        axes.set_yscale("log")
    handles = []
    width = 0.8 / slots
    up, down = [0.0] * len(groups), [0.0] * len(groups)
    written: list[tuple[int, float, str]] = []
    for number, name in enumerate(series):
        place = [i + (0.0 if stacked else (number - (slots - 1) / 2) * width) for i in range(len(groups))]
        drawn: list[tuple[int, float]] = []
        for i, values in enumerate(groups.values()):
            if name not in values:
                continue
            value = float(values[name])
            if math.isfinite(value) and not (log and value == 0):
                drawn.append((i, value))
            else:
                written.append((i, place[i], f"{value:g}"))
        rows, heights = [i for i, _ in drawn], [value for _, value in drawn]
        bottom = [0.0 if not stacked else (up if value >= 0 else down)[i] for i, value in drawn] if not log else None
        half = None
        if errors is not None:
            half = [errors.get(list(groups)[i], {}).get(name, math.nan) for i in rows]  # NaN: none is drawn
        look = {
            "color": COLOURS[number % len(COLOURS)],
            "hatch": hatch(number),
            "edgecolor": "white",
            "linewidth": 0.3 if len(groups) <= 100 else 0.0,  # else the edges hide the bars
            "capsize": 2,
            "error_kw": {"elinewidth": 0.8},
        }
        handles.append(axes.bar([place[i] for i in rows], heights, width, bottom=bottom, yerr=half, **look))
        for i, value in drawn:
            (up if value >= 0 else down)[i] += value
    for i, where, text in written:  # where the bar would stand
        foot, transform = (0.02, axes.get_xaxis_transform()) if log else (up[i] if stacked else 0.0, axes.transData)
        axes.text(where, foot, f" {text}", rotation=90, ha="center", va="bottom", fontsize=TINY, transform=transform)
    if not log:
        axes.axhline(0, color="black", linewidth=0.6)
    _names_along(axes, list(groups), wide)
    if len(series) > 1:
        _legend(axes, handles, series)
    return _finish(figure, axes, title, xlabel, ylabel)


def _names_along(axes: Any, names: Sequence[str], width: float) -> None:
    """Names below the bars: where there are many only every so many, where they are long slanted."""
    every = -(-len(names) // MAX_TICKS)
    places = range(0, len(names), every)
    shown = [_shorten(names[i]) for i in places]
    letters = max(len(name) for name in shown) * len(shown)
    slanted = letters > 11 * width  # of font size 8, with gaps, eleven fit into an inch
    angle = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(places, shown, fontsize=SMALL, parse_math=False, **angle)
    axes.set_xlim(-0.6, len(names) - 0.4)


def _finish(figure: Any, axes: Any, title: str, xlabel: str, ylabel: str) -> Tensor:
    letters = int(11.5 * figure.get_figwidth())  # of font size 9, as many as the figure is wide
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
    """Points in the plane [3, H, W], both axes to the same scale.

    Arguments:
        points: [N, 2]; those that are not finite are left out, and the title says how many.
        title, xlabel, ylabel: say what is shown.
        labels: int64 [N], one colour each; None: all of one.
        names: of the labels 0, 1, ...; None: their numbers.
        ellipses: lines drawn over the points.

    Raises InputError unless points are [N, 2].
    """
    if points.dim() != 2 or points.shape[1] != 2:
        raise InputError(f"scatter: points must be [N, 2], got {list(points.shape)}")
    from matplotlib import colormaps
    from matplotlib.patches import Ellipse as Line

    finite = points.isfinite().all(1).cpu()
    shown = points.detach().cpu().double()[finite]
    missing = len(points) - len(shown)
    figure, axes = _figure(MIN_WIDTH + (0.9 if labels is not None else 0), MIN_WIDTH)
    size = min(16.0, max(2.0, 20_000 / max(1, len(shown))))  # points squared: many points are small ones
    kinds = [] if labels is None else labels.unique().tolist()
    # tab10 and tab20 are told apart at a glance; more colours than that are not, whichever they are.
    table = "tab10" if len(kinds) <= 10 else "tab20" if len(kinds) <= 20 else "turbo"
    last = max(kinds, default=0)

    def colour(kind: int) -> Any:
        return colormaps[table](kind / max(1, last) if table == "turbo" else kinds.index(kind))

    if labels is None:
        axes.scatter(*shown.T.numpy(), s=size, color=COLOURS[0], linewidths=0)
    else:
        # All in one call and in the images' order, or the last label would cover the others.
        colours = [colour(kind) for kind in labels.cpu()[finite].tolist()]
        axes.scatter(*shown.T.numpy(), s=size, color=colours, linewidths=0)
        step = -(-len(kinds) // 20)
        handles = [axes.scatter([], [], s=18, color=[colour(kind)]) for kind in kinds[::step]]
        _legend(axes, handles, (str(kind) if names is None else names[kind] for kind in kinds[::step]))
    for ellipse in ellipses:
        width, height = (2 * radius for radius in ellipse.radii)
        edge = "dimgrey" if ellipse.colour is None else colour(ellipse.colour)
        axes.add_patch(Line(ellipse.centre, width, height, fill=False, edgecolor=edge, linewidth=1, zorder=3))
    axes.autoscale_view()
    axes.set_aspect("equal", adjustable="datalim")
    axes.tick_params(axis="x", labelsize=SMALL)
    title += f" ({missing} points that are not finite are left out)" if missing else ""
    return _finish(figure, axes, title, xlabel, ylabel)
