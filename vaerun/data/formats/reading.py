"""What the readers share: one line for any error, and no more memory than a file of its size deserves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vaerun.errors import InputError
from vaerun.storage.npz import DATA_BYTES, MAXIMUM_EXPANSION
from vaerun.text import printable


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn any error of reading this file into an InputError that names it and what was expected."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    # Damaged files raise dozens of exceptions of zlib, struct, numpy and pyarrow; their type tells the user nothing.
    except Exception as error:
        told = isinstance(error, ValueError | OSError) and not isinstance(error, EOFError)
        reason = (printable(error, 200) if told else "") or "it is damaged or cut off"
        raise InputError(f"{path}: not a readable {kind} ({reason}); get it again from its source") from error


def check_expansion(declared: int, size: int) -> None:
    """Raise ValueError if a file of `size` bytes declares more bytes of data than it can reasonably hold."""
    if declared > max(DATA_BYTES, MAXIMUM_EXPANSION * size):
        raise ValueError(f"a file of {size} bytes declares {declared} bytes of data")
