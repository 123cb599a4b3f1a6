"""Text for people: numbers, names that were meant, and strangers' text made printable."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONG = 1e9  # from here on the digits before the point hide how large a number is


def fixed(value: float, digits: int, sign: str = "") -> str:
    """A number with so many digits after the point, 12.30; a huge one in short, 1e+30.

    Arguments:
        sign: "+" to print that of a positive number, too.
    """
    return format(value, f"{sign}.{digits}f" if not abs(value) >= LONG else f"{sign}.6g")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """' Did you mean X?' for the closest of the names, else ''."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not close:  # the right key under the wrong parent, or none at all
        leaves = {n.rpartition(".")[2]: n for n in names}
        leaf = difflib.get_close_matches(name.rpartition(".")[2], list(leaves), n=1, cutoff=0.75)
        close = [leaves[leaf[0]]] if leaf else []
    return f" Did you mean {close[0]}?" if close else ""


def is_unicode(text: str) -> bool:
    """Whether a file takes this text: a path's bytes and an escape of JSON can be halves of letters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: object, most: int | None = None) -> str:
    """Text of a stranger as one line for a terminal: control codes, reversed letters and the like become `?`."""
    line = " ".join("".join(c if c.isprintable() or c.isspace() else "?" for c in str(text)).split())
    return line if most is None or len(line) <= most else f"{line[: most - 1]}…"


def printable_lines(text: str) -> str:
    """The same for a text of several lines, whose spaces stay as they are."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
