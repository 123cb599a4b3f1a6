"""Which folder a run works in, and that nobody else does."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from vaerun.errors import InputError
from vaerun.storage.atomic import clear_temporaries

LOCK_SECONDS = 1.0  # somebody who only looks whether the folder is held has it for a moment

FOLDERS = (".hydra", "checkpoints", "figures")
"""Which a run makes in its own."""
FILES = (
    *(".lock", ".job.json", "job.log", "run.log", "metrics.jsonl", "per_example.npz", "arrays.npz"),
    *(f".hydra/{name}.yaml" for name in ("config", "overrides", "hydra")),
    *(f"checkpoints/{name}.pt" for name in ("last", "previous", "best")),
)
"""What a run writes in its folder, besides result.json, whose content says whose folder it is."""


class Busy(InputError):
    """Another process works in this folder."""


def next_free_dir(folder: Path) -> Path:
    """The first of FOLDER, FOLDER-2, FOLDER-3, ... that holds nothing."""
    n, candidate = 1, folder
    while candidate.exists() and any(candidate.iterdir()):
        n += 1
        candidate = folder.with_name(f"{folder.name}-{n}")
    return candidate


def check_places(folder: Path) -> None:
    """Raises InputError where something of another kind is in the place of what a run writes."""
    check_kinds((folder / name for name in FOLDERS), (folder / name for name in FILES))
    check_kinds((), sorted(folder.glob("figures/*.png")))


def check_kinds(folders: Iterable[Path], files: Iterable[Path]) -> None:
    """Raises InputError where one of these is there and is of another kind, or a folder that cannot be written into.

    Called before any work: the last of these places is written to after it, and it would be lost.
    """
    for path in folders:
        if os.path.lexists(path) and not path.is_dir():  # a link that leads nowhere is none, either
            raise InputError(f"{path} is no folder, and one is written into there: move it away")
        if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
            reason = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
            raise InputError(f"{path} cannot be written into ({os.strerror(reason)}): make it writable")
    for path in files:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no file, and one is written there: move it away")


@contextmanager
def lock_run_dir(folder: Path, otherwise: str = "choose another output_dir") -> Iterator[None]:
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


LOOK_SECONDS = 0.06  # another one who only looks has the lock for a moment too


def is_locked(folder: Path) -> bool:
    """Whether a process works in this run directory: it holds the folder's lock, which ends with it."""
    path = folder / ".lock"
    try:
        if not path.exists():
            return False
        lock = filelock.FileLock(path)
        lock.acquire(timeout=LOOK_SECONDS, poll_interval=LOOK_SECONDS / 3)
    except filelock.Timeout:
        return True
    except OSError:  # read-only: whoever looks can know no more
        return False
    lock.release()
    return False
