"""Which folder a run works in, and that nobody else does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from vaerun.errors import InputError
from vaerun.files import clear_temporaries

LOCK_SECONDS = 1.0  # somebody who only looks whether the folder is held has it for a moment


class Busy(InputError):
    """Another process works in this folder."""


def fresh(folder: Path) -> Path:
    """The first of FOLDER, FOLDER-2, FOLDER-3, ... that holds nothing."""
    n, candidate = 1, folder
    while candidate.exists() and any(candidate.iterdir()):
        n += 1
        candidate = folder.with_name(f"{folder.name}-{n}")
    return candidate


@contextmanager
def claim(folder: Path, otherwise: str = "choose another output_dir") -> Iterator[None]:
    """Hold a lock on the folder; the system releases it when the process ends, however it ends.

    What killed processes have left half written there is removed.

    Arguments:
        folder: to work in.
        otherwise: what else the user can do where that is not possible.

    Raises Busy where another process holds it, InputError where the folder cannot be written into.
    """
    lock = filelock.FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_SECONDS)
    except filelock.Timeout as error:
        raise Busy(f"another run is working in {folder}: wait for it, or {otherwise}") from error
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"cannot write into {folder} ({why}): {otherwise}") from error
    try:
        clear_temporaries(folder)
        yield
    finally:
        lock.release()
