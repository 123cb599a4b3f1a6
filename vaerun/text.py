"""Formatting text for people: numbers, suggestions for misspelled names, and untrusted text made printable."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable
from typing import TextIO

HUGE = 1e9  # above this, fixed-point notation is hard to read


def format_fixed(value: float, digits: int, sign: str = "") -> str:
    """Format a number in fixed-point notation (12.30), or a huge one in scientific notation (1e+30).

    Arguments:
        value: number to format.
        digits: number of digits after the decimal point.
        sign: "+" to print the sign of positive numbers, too.
    """
    return format(value, f"{sign}.{digits}f" if not abs(value) >= HUGE else f"{sign}.6g")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ' Did you mean X?' for the closest of the names, or '' if none is close."""
    names = list(names)
    leaf_of = name.rpartition(".")[2]
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.6)
    # A long common group, as in trainer.gpus and trainer.epochs, does not make two keys similar.
    close = [n for n in close if difflib.get_close_matches(leaf_of, [n.rpartition(".")[2]], cutoff=0.6)]
    if not close:  # perhaps the right key in the wrong group
        leaves = {n.rpartition(".")[2]: n for n in names}
        leaf = difflib.get_close_matches(leaf_of, list(leaves), n=1, cutoff=0.75)
        close = [leaves[leaf[0]]] if leaf else []
    return f" Did you mean {close[0]}?" if close else ""


def is_valid_unicode(text: str) -> bool:
    """Whether the text can be encoded: undecodable path names and JSON escapes yield lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: object, maximum: int | None = None) -> str:
    """Untrusted text as one line for a terminal: control codes, bidirectional overrides etc. are replaced by `?`."""
    line = " ".join("".join(c if c.isprintable() or c.isspace() else "?" for c in str(text)).split())
    return line if maximum is None or len(line) <= maximum else f"{line[: maximum - 1]}…"


def printable_lines(text: str) -> str:
    """Like `printable`, but for several lines; whitespace is kept."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def print_output(text: str, stream: TextIO | None = None) -> None:
    """Print to standard output, or to `stream`, whose reader may have closed it early, as `head` does."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        # Python flushes again on exit, and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def natural_key(name: str) -> tuple[list[str | int], str]:
    """A sort key that compares runs of digits as numbers; the name itself breaks ties, as of 1.png and 01.png."""
    # Text is at even indices and digits at odd ones, so that a string is never compared with a number.
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))], name
