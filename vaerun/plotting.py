"""One style for all figures: colours, font sizes, matplotlib's defaults and the Agg canvas.

Figures never go through pyplot, which keeps global state and may open a window, and ignore the user's matplotlibrc, so
that they look the same everywhere. Names come from users and run directories: they are drawn literally, never parsed as
mathtext, and characters that the font lacks become "?". matplotlib takes half a second to import and is loaded lazily.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
TINY, SMALL, MEDIUM, LARGE = 7, 8, 9, 10  # font sizes in points


@contextmanager
def default_style() -> Iterator[None]:
    """Draw under matplotlib's own defaults; also usable as a decorator."""
    from matplotlib import style

    with style.context("default", after_reset=True):
        yield


def new_figure(width: float, height: float, dpi: int) -> Any:
    """An empty figure of this size in inches on an Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_bytes(figure: Any) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def hatch(index: int) -> str | None:
    """The hatch of series `index`, which sets apart the series that share a colour."""
    return "//" * (index // len(COLOURS)) or None


@lru_cache(maxsize=1)
def _code_points() -> frozenset[int]:
    """Code points that the font has."""
    from matplotlib import font_manager, ft2font

    return frozenset(ft2font.FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())


def drawable(text: str) -> str:
    """The text with "?" for every character that the font lacks; line breaks stay."""
    return "".join(c if c == "\n" or ord(c) in _code_points() else "?" for c in text)


def legend_label(text: str) -> str:
    """The text as a legend shows it: a label that begins with "_" would be left out."""
    return f" {text}" if text.startswith("_") else text


def disable_mathtext(legend: Any) -> None:
    """Draw the labels of a legend literally."""
    for text in legend.get_texts():
        text.set_parse_math(False)
