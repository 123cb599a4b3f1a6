"""Text of strangers, made harmless for each format: names, errors and settings come from run directories."""

from __future__ import annotations

import re
import unicodedata
from typing import TypeGuard

from vaerun.text import printable

_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?")


def clean(text: object, most: int = 200) -> str:
    """Text of a stranger as one printable line of at most so many characters."""
    return printable(text, most)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a finite number; an integer of hundreds of digits, which no float holds, is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def escape_markdown(text: str, line: bool = False) -> str:
    """Text that Markdown shows as it is: no cell ends, no HTML, link, formula or emphasis begins.

    `line`: it stands at the beginning of a line, where no heading, quotation or list may begin either.
    """
    text = re.sub(r"&(?=#|\w+;)", "&amp;", text)
    for old, new in (("\\", "\\\\"), ("<", "&lt;"), ("`", "'"), ("](", "] (")):
        text = text.replace(old, new)
    text = re.sub(r"([|[*$])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word it is a letter
    if not line:
        return text
    text = re.sub(r"^(#|>|~~~|[-+=](?=\s|$|[-+=]))", r"\\\1", text)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)


def escape_csv(text: str) -> str:
    """Text that a spreadsheet takes for text: what would be a formula gets an apostrophe before it."""
    begins = unicodedata.normalize("NFKC", text[:1])  # a full-width = is one too
    return f"'{text}" if begins in tuple("=+-@\t\r") and not _NUMBER.fullmatch(text) else text


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
