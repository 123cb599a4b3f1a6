"""Small charts as pictures [3, H, W] in [0, 1], so that TensorBoard and files take them like any other picture.

Drawn by matplotlib's own Agg canvas, never by pyplot, which keeps global state and may want a screen; the user's
matplotlibrc is left out, so that a chart looks the same everywhere. Names come from the user (classes, runs): they
are shown letter by letter, never read as formulas, and letters that the font lacks are shown as "?".
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor

from vaerun.errors import InputError

DPI = 110
HEIGHT, NARROWEST, WIDEST = 3.8, 5.0, 10.0  # inches
TICKS, LETTERS = 24, 32  # at most so many names along the axis, of so many letters
# Okabe & Ito's colours: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")

Groups = Mapping[str, Mapping[str, float]]
P = ParamSpec("P")


@dataclass(frozen=True)
class Ellipse:
    """An ellipse along the axes, to be drawn as a line: centre (x, y), radii (x, y), colour's number or None: grey."""

    centre: tuple[float, float]
    radii: tuple[float, float]
    colour: int | None = None


def _plain_style(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Runs the function under matplotlib's defaults, whatever the user's own settings are."""

    @wraps(function)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        from matplotlib import style  # takes half a second to import

        with style.context("default", after_reset=True):
            return function(*args, **kwargs)

    return styled


@lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    """Code points that the font has."""
    from matplotlib import font_manager, ft2font

    return frozenset(ft2font.FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())


def _shown(name: str, most: int = LETTERS) -> str:
    """The name as it can be drawn: one line, at most so many letters (the middle left out), unknown ones as `?`."""
    known = "".join(letter if ord(letter) in _letters() else "?" for letter in " ".join(name.split()))
    half = (most - 1) // 2
    return known if len(known) <= most else f"{known[:half]}…{known[-half:]}"


def _figure(width: float, height: float = HEIGHT) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _picture(figure: Any) -> Tensor:
    figure.canvas.draw()
    pixels = torch.frombuffer(bytearray(figure.canvas.buffer_rgba()), dtype=torch.uint8)
    width, height = figure.canvas.get_width_height()
    return pixels.view(height, width, 4)[..., :3].permute(2, 0, 1).float() / 255


def _legend(axes: Any, handles: Sequence[Any], names: Iterable[str]) -> None:
    # Beside the axes, where it hides nothing. A name that begins with "_" would be left out: a space before it helps.
    shown = [" " + name if name.startswith("_") else name for name in (_shown(n) for n in names)]
    legend = axes.legend(
        handles, shown, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8, borderaxespad=0.2
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


@_plain_style
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
    wide = min(WIDEST, max(NARROWEST, 1.5 + 0.1 * len(groups) * (slots + 1)))
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
            "hatch": "//" * (number // len(COLOURS)) or None,
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
        axes.text(where, foot, f" {text}", rotation=90, ha="center", va="bottom", fontsize=7, transform=transform)
    if not log:
        axes.axhline(0, color="black", linewidth=0.6)
    _names_along(axes, list(groups), wide)
    if len(series) > 1:
        _legend(axes, handles, series)
    return _finish(figure, axes, title, xlabel, ylabel)


def _names_along(axes: Any, names: Sequence[str], width: float) -> None:
    """Names below the bars: where there are many only every so many, where they are long slanted."""
    every = -(-len(names) // TICKS)
    places = range(0, len(names), every)
    shown = [_shown(names[i]) for i in places]
    letters = max(len(name) for name in shown) * len(shown)
    slanted = letters > 11 * width  # of font size 8, with gaps, eleven fit into an inch
    angle = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(places, shown, fontsize=8, parse_math=False, **angle)
    axes.set_xlim(-0.6, len(names) - 0.4)


def _finish(figure: Any, axes: Any, title: str, xlabel: str, ylabel: str) -> Tensor:
    letters = int(11.5 * figure.get_figwidth())  # of font size 9, as many as the figure is wide
    figure.suptitle(textwrap.fill(_shown(title, 200), letters), fontsize=9, parse_math=False)
    axes.set_xlabel(_shown(xlabel, 80), fontsize=8, parse_math=False)
    axes.set_ylabel(_shown(ylabel, 80), fontsize=8, parse_math=False)
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return _picture(figure)


@_plain_style
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
    figure, axes = _figure(NARROWEST + (0.9 if labels is not None else 0), NARROWEST)
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
    axes.tick_params(axis="x", labelsize=8)
    title += f" ({missing} points that are not finite are left out)" if missing else ""
    return _finish(figure, axes, title, xlabel, ylabel)
