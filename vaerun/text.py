"""Formatting text for people: numbers, suggestions for misspelled names, and untrusted text made printable."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable

HUGE = 1e9  # beyond, fixed-point digits hide the magnitude of a number


def format_fixed(value: float, digits: int, sign: str = "") -> str:
    """Format a number with `digits` digits after the point, 12.30; a huge one in short, 1e+30.

    Arguments:
        value: to format.
        digits: after the point.
        sign: "+" to also print the sign of positive numbers.
    """
    return format(value, f"{sign}.{digits}f" if not abs(value) >= HUGE else f"{sign}.6g")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """' Did you mean X?' for the closest of the names, else ''."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not close:  # perhaps the right key under a wrong parent
        leaves = {n.rpartition(".")[2]: n for n in names}
        leaf = difflib.get_close_matches(name.rpartition(".")[2], list(leaves), n=1, cutoff=0.75)
        close = [leaves[leaf[0]]] if leaf else []
    return f" Did you mean {close[0]}?" if close else ""


def is_valid_unicode(text: str) -> bool:
    """Whether this text can be encoded: undecodable bytes of a path and escapes in JSON yield lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: object, maximum: int | None = None) -> str:
    """Untrusted text as one line for a terminal: control codes, bidirectional overrides and the like become `?`."""
    line = " ".join("".join(c if c.isprintable() or c.isspace() else "?" for c in str(text)).split())
    return line if maximum is None or len(line) <= maximum else f"{line[: maximum - 1]}…"


def printable_lines(text: str) -> str:
    """The same for a text of several lines; whitespace is kept."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def print_output(text: str) -> None:
    """Print to standard output, whose reader may have closed it early, as `head` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes once more when it exits, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
