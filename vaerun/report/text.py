"""Text of strangers, made harmless for each format: names, errors and settings come from run directories."""

from __future__ import annotations

import re
import unicodedata
from typing import TypeGuard

_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?")


def clean(text: object, most: int = 200) -> str:
    """Text of a stranger as one printable line of at most so many characters."""
    line = " ".join("".join(c if c.isprintable() or c.isspace() else "?" for c in str(text)).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a finite number; an integer of hundreds of digits, which no float holds, is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is: no cell ends, no HTML, no link begins."""
    text = re.sub(r"&(?=#|\w+;)", "&amp;", text)
    for old, new in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "'"), ("](", "] (")):
        text = text.replace(old, new)
    return text


def escape_csv(text: str) -> str:
    """Text that a spreadsheet takes for text: what would be a formula gets an apostrophe before it."""
    return f"'{text}" if text[:1] in tuple("=+-@\t\r") and not _NUMBER.fullmatch(text) else text


_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "±": r"$\pm$", "<": "$<$",
    ">": "$>$", "|": "$|$", "[": "{[}", "]": "{]}", "*": "{*}", '"': "''", "…": r"\dots{}",
}  # fmt: skip


def escape_tex(text: str) -> str:
    """Text that plain LaTeX sets; letters that it has not without packages lose their accents, or become ?."""
    found = []
    for letter in text:
        plain = _TEX.get(letter)
        if plain is None:
            base = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
            plain = "".join(_TEX.get(c, c) for c in base) if base.isprintable() and base else "?"
        found.append(plain)
    return "".join(found)
