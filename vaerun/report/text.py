"""Untrusted text escaped for each format: names, errors and settings come from run directories."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TypeGuard

from vaerun.text import printable

_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?")


def clean(text: object, maximum: int = 200) -> str:
    """Untrusted text as one printable line of at most `maximum` characters."""
    return printable(text, maximum)


def abbreviate(names: Sequence[str], maximum: int = 4) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - maximum} more" if len(names) > maximum else ""
    return ", ".join(names[:maximum]) + more


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether the value is a finite number that fits into a float, unlike an integer of hundreds of digits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def escape_markdown(text: str, line: bool = False) -> str:
    """Escape text so that Markdown shows it literally: it neither ends a cell nor starts HTML, a link or a formula.

    `line`: the text begins a line, so it must not start a heading, a quotation or a list either.
    """
    text = re.sub(r"&(?=#|\w+;)", "&amp;", text)
    for old, new in (("\\", "\\\\"), ("<", "&lt;"), ("`", "'"), ("](", "] (")):
        text = text.replace(old, new)
    text = re.sub(r"([|[*$])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # an underscore within a word is literal anyway
    if not line:
        return text
    text = re.sub(r"^(#|>|~~~|[-+=](?=\s|$|[-+=]))", r"\\\1", text)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)


def escape_csv(text: str) -> str:
    """Prefix what a spreadsheet would take for a formula with an apostrophe."""
    start = unicodedata.normalize("NFKC", text[:1])  # so that a full-width = is recognised
    return f"'{text}" if start in tuple("=+-@\t\r") and not _NUMBER.fullmatch(text) else text


_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "±": r"$\pm$", "‖": r"$\|$",
    "<": "$<$", ">": "$>$", "|": "$|$", "[": "{[}", "]": "{]}", "*": "{*}", '"': "''", "…": r"\dots{}",
}  # fmt: skip


def escape_tex(text: str) -> str:
    """Escape text for LaTeX without packages; letters beyond ASCII lose their accents or become ?."""
    escaped = []
    for letter in text:
        tex = _TEX.get(letter)
        if tex is None:
            base = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
            tex = "".join(_TEX.get(c, c) for c in base) if base.isprintable() and base else "?"
        escaped.append(tex)
    return "".join(escaped)
