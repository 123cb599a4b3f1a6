"""The run directory: which one a run uses, what it may contain, and its lock."""

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
LOCK_TIMEOUT = 1.0  # seconds; a process that only probes the lock holds it for a moment
PROBE_TIMEOUT = 0.06  # seconds; another process that probes it holds it for a moment, too

SUBDIRECTORIES = (".hydra", "checkpoints", "figures")
"""Directories that a run creates in its own."""
FILES = (
    *(".lock", ".job.json", "job.log", "run.log", "metrics.jsonl", "per_example.npz", "arrays.npz"),
    *(f".hydra/{name}.yaml" for name in ("config", "overrides", "hydra")),
    *(f"checkpoints/{name}.pt" for name in ("last", "previous", "best")),
)
"""Files that a run writes, apart from result.json, whose content identifies the run."""


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
    """Raise InputError where a path that the run will write is taken by something else, see check_paths."""
    check_paths((folder / name for name in SUBDIRECTORIES), (folder / name for name in FILES))
    check_paths((), sorted(folder.glob("figures/*.png")))


def check_paths(folders: Iterable[Path], files: Iterable[Path]) -> None:
    """Raise InputError for a path that exists and is of another type, or for a directory that is not writable.

    Called before any work: some of these paths are first written at the end of a run, when a failure would cost all of
    its results.
    """
    for path in folders:
        if os.path.lexists(path) and not path.is_dir():  # a dangling link is not one, either
            raise InputError(f"{path} is not a directory, and the run needs one there: move it away")
        if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
            code = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
            raise InputError(f"cannot write into {path} ({os.strerror(code)}): make it writable")
    for path in files:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a file, and the run writes one there: move it away")


@contextmanager
def lock_run_dir(folder: Path, alternative: str = "choose another output_dir") -> Iterator[None]:
    """Hold the lock of a run directory; the system releases it when the process ends, however it ends.

    Temporary files that killed processes left there are removed.

    Arguments:
        folder: run directory; created where it does not exist.
        alternative: what else the user can do where the directory cannot be used.

    Raises RunDirLocked where another process holds the lock, InputError where the directory is not writable.
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
    """Whether a process is using this run directory: it holds the lock for as long as it lives."""
    path = folder / ".lock"
    try:
        if not path.exists():
            return False
        lock = filelock.FileLock(path)
        lock.acquire(timeout=PROBE_TIMEOUT, poll_interval=PROBE_TIMEOUT / 3)
    except filelock.Timeout:
        return True
    except OSError:  # read-only: it cannot be known
        return False
    lock.release()
    return False
