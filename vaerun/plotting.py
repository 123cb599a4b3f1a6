"""Shared style of all figures: colours, font sizes, matplotlib's defaults and the Agg canvas.

Figures do not use pyplot, which keeps global state and may open a window, and they ignore the user's matplotlibrc so
that they look the same everywhere. Names from users and run directories are drawn literally, never parsed as mathtext,
and characters missing from the font are replaced by "?". matplotlib is imported lazily, as this takes half a second.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

# The colour-blind safe palette of Okabe and Ito.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
TINY, SMALL, MEDIUM, LARGE = 7, 8, 9, 10  # font sizes in points


@contextmanager
def default_style() -> Iterator[None]:
    """Apply matplotlib's default style; also usable as a decorator."""
    from matplotlib import style

    with style.context("default", after_reset=True):
        yield


def new_figure(width: float, height: float, dpi: int) -> Any:
    """Create an empty figure on an Agg canvas; width and height in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_bytes(figure: Any) -> bytes:
    """Render the figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def hatch(index: int) -> str | None:
    """Hatch of series `index`, which distinguishes series of the same colour; None for the first ones."""
    return "//" * (index // len(COLOURS)) or None


@lru_cache(maxsize=1)
def _code_points() -> frozenset[int]:
    """Code points covered by the font."""
    from matplotlib import font_manager, ft2font

    return frozenset(ft2font.FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())


def drawable(text: str) -> str:
    """Replace characters missing from the font by "?", except for line breaks."""
    return "".join(c if c == "\n" or ord(c) in _code_points() else "?" for c in text)


def legend_label(text: str) -> str:
    """Prepend a space to labels that start with "_", which matplotlib would leave out of the legend."""
    return f" {text}" if text.startswith("_") else text


def disable_mathtext(legend: Any) -> None:
    """Disable mathtext in the labels of a legend."""
    for text in legend.get_texts():
        text.set_parse_math(False)
