"""The run directory: its choice, allowed contents and lock."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from vaerun.errors import InputError
from vaerun.storage.atomic import remove_temporaries

PLAN_FILE = "sweep.json"  # in the folder of a sweep
LOCK_TIMEOUT = 1.0  # seconds; other processes hold the lock briefly to probe it
PROBE_TIMEOUT = 0.06  # seconds; likewise, another probe holds the lock briefly

SUBDIRECTORIES = (".hydra", "checkpoints", "figures")
"""Subdirectories that a run creates."""
FILES = (
    *(".lock", ".job.json", "job.log", "run.log", "metrics.jsonl", "per_example.npz", "arrays.npz", "images.npz"),
    *(f".hydra/{name}.yaml" for name in ("config", "overrides", "hydra")),
    *(f"checkpoints/{name}.pt" for name in ("last", "previous", "best")),
)
"""Files that a run writes, except result.json, whose content identifies the run."""


class RunDirLocked(InputError):
    """Another process is using this run directory."""


def next_free_dir(folder: Path) -> Path:
    """The first of FOLDER, FOLDER-2, FOLDER-3, ... that is missing or empty."""
    n, candidate = 1, folder
    while candidate.exists() and any(candidate.iterdir()):
        n += 1
        candidate = folder.with_name(f"{folder.name}-{n}")
    return candidate


def check_run_paths(folder: Path) -> None:
    """Raise InputError if a path that the run will write cannot be written, see check_paths."""
    check_paths((folder / name for name in SUBDIRECTORIES), (folder / name for name in FILES))
    check_paths((), sorted(folder.glob("figures/*.png")))


def check_paths(folders: Iterable[Path], files: Iterable[Path]) -> None:
    """Raise InputError if a path exists with the wrong type, or a directory is not writable.

    Called before any work: some of these paths are only written at the end of a run, when a failure would lose its
    results.
    """
    for path in folders:
        if os.path.lexists(path) and not path.is_dir():  # includes dangling links
            raise InputError(f"{path} is not a directory, and the run needs one there: move it away")
        if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
            code = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
            raise InputError(f"cannot write into {path} ({os.strerror(code)}): make it writable")
    for path in files:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a file, and the run writes one there: move it away")


@contextmanager
def lock_run_dir(folder: Path, alternative: str = "choose another output_dir") -> Iterator[None]:
    """Hold the lock of a run directory; the operating system releases it however the process ends.

    Temporary files that killed processes left there are removed.

    Arguments:
        folder: run directory; created if it does not exist.
        alternative: advice in the error line if the directory cannot be used.

    Raises RunDirLocked if another process holds the lock, InputError if the directory is not writable.
    """
    lock = filelock.FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_TIMEOUT)
    except filelock.Timeout as error:
        raise RunDirLocked(f"another run is using {folder}: wait for it to end, or {alternative}") from error
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write into {folder} ({reason}): {alternative}") from error
    try:
        remove_temporaries(folder)
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process is using this run directory, whose lock it holds until it exits."""
    path = folder / ".lock"
    try:
        if not path.exists():
            return False
        lock = filelock.FileLock(path)
        lock.acquire(timeout=PROBE_TIMEOUT, poll_interval=PROBE_TIMEOUT / 3)
    except filelock.Timeout:
        return True
    except OSError:  # a read-only folder: unknown
        return False
    lock.release()
    return False
