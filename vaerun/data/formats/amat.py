"""The binarised MNIST of Larochelle and Murray (2011): text files, one image of 784 digits 0 or 1 per line.

Its images were binarised once, at random. Published results on "fixed" or "static" binarisation are on these images;
they compare with no other binarisation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vaerun.data.arrays import Arrays
from vaerun.data.formats.reading import reading
from vaerun.errors import InputError
from vaerun.storage.untrusted import open_regular

FILE_NAME = re.compile(r"binarized_mnist_(train|valid|test)\.amat", re.IGNORECASE)
COUNTS = {"train": 50_000, "valid": 10_000, "test": 10_000}
SPLIT = "official, fixed binarisation of Larochelle and Murray (2011)"
SIDE = 28
CHUNK_BYTES = 1 << 22
DIGIT, SPACE, NEWLINE = 1, 2, 3
_KINDS = np.zeros(256, dtype=np.uint8)
_KINDS[list(b"01")], _KINDS[list(b" \t\r")], _KINDS[ord("\n")] = DIGIT, SPACE, NEWLINE


def binarised_mnist(paths: Iterable[Path], where: Path) -> Arrays:
    """The data set of the three files in a folder, with its own validation part.

    Raises InputError if a file is missing.
    """
    files = {path.stem.lower().rpartition("_")[2]: path for path in sorted(paths)}
    if missing := [f"binarized_mnist_{part}.amat" for part in COUNTS if part not in files]:
        raise InputError(
            f"{where}: has {', '.join(path.name for path in files.values())} but not {', '.join(missing)}: put all "
            "three files of the binarised MNIST into one folder"
        )
    images = {part: read_amat(files[part]) for part in COUNTS}
    counts = {part: len(array) for part, array in images.items()}
    published = counts == COUNTS
    warning = f"the published files have {_format(COUNTS)} images, these {_format(counts)}: results do not compare"
    return Arrays(
        images["train"],
        None,
        images["test"],
        None,
        SPLIT if published else f"files of {_format(counts)} images",
        validation_images=images["valid"],
        notes=("fixed binarisation of Larochelle and Murray (2011)",) if published else (),
        warnings=() if published else (warning,),
    )


def read_amat(path: Path) -> np.ndarray:
    """The images of a file, uint8 [N, 28, 28], 0 or 255. Raises InputError for anything else than 0 and 1."""
    with reading(path, "text file of binary images"):
        parts = list(_read_chunks(path))
        if not parts:
            raise ValueError("it is empty")
        return np.concatenate(parts)


def _read_chunks(path: Path) -> Iterator[np.ndarray]:
    lines, rest = 0, b""
    with open_regular(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            text, newline, rest = (rest + chunk).rpartition(b"\n")
            if not newline and len(rest) >= CHUNK_BYTES:
                raise ValueError(f"line {lines + 1} is longer than {CHUNK_BYTES} bytes")
            if newline:
                images = _parse(text + newline, lines)
                lines += text.count(b"\n") + 1
                yield images
    if rest.strip():
        yield _parse(rest + b"\n", lines)


def _parse(text: bytes, before: int) -> np.ndarray:
    """The images of whole lines, the first of which follows `before` others."""
    kinds = _KINDS[np.frombuffer(text, dtype=np.uint8)]
    digits, ends = kinds == DIGIT, np.flatnonzero(kinds == NEWLINE)
    # Two digits in a row would be a number such as 10.
    if (bad := (kinds == 0) | (digits & np.append(False, digits[:-1]))).any():
        line = before + 1 + int(np.searchsorted(ends, bad.argmax()))
        raise ValueError(f"line {line} has something else than 0, 1 and spaces")
    counts = np.diff(np.cumsum(digits)[ends], prepend=0)
    wrong = np.flatnonzero((counts != SIDE * SIDE) & (counts != 0))  # empty lines do no harm
    if len(wrong):
        line, count = before + 1 + wrong[0], counts[wrong[0]]
        raise ValueError(f"line {line} has {count} numbers; expected {SIDE * SIDE}, of 0 and 1")
    values: Any = np.frombuffer(text, dtype=np.uint8)[digits]
    return ((values - ord("0")) * np.uint8(255)).reshape(-1, SIDE, SIDE)


def _format(counts: dict[str, int]) -> str:
    return "/".join(f"{count:,}" for count in counts.values())
