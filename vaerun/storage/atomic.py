"""Atomic file writes: at any moment, even after a crash, a file has either its old or its new content."""

from __future__ import annotations

import errno
import glob
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from vaerun.errors import RunError

TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
"""Names of files being written, `.NAME.PID.tmp`; a killed process leaves them behind."""
UNLOCKED_PREFIX = ".job.json."  # written by the process that launches a run, without holding the run's lock
STALE_SECONDS = 3600.0  # no write takes this long


def write_atomically(path: Path, content: bytes | memoryview, backup: Path | None = None) -> None:
    """Write under a temporary name, fsync, rename, fsync the directory.

    Arguments:
        path: file to write.
        content: the complete new content.
        backup: path that keeps the previous content; None: discard it.

    Raises RunError if the file cannot be written (disk full, read-only).
    """
    try:
        with open_atomically(path, backup) as file:
            file.write(content)
    except OSError as error:
        intact = "; its previous content is intact" if os.path.exists(path) else ""
        raise RunError(f"cannot write {path}: {error.strerror or error}{intact}") from error


@contextmanager
def open_atomically(path: Path, backup: Path | None = None) -> Iterator[BinaryIO]:
    """Yield a temporary file that replaces `path` on a clean exit, once it is on disk. Raises OSError."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        _remove_if_stale(leftover)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # left by a killed process with the same PID, or a malicious link
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if backup is not None and path.exists():
            _back_up(path, backup)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def _back_up(path: Path, backup: Path) -> None:
    # A hard link, not a rename, so that `path` exists at every moment.
    link = backup.with_name(f".{backup.name}.{os.getpid()}.tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # file systems without hard links
        os.replace(path, backup)
    else:
        os.replace(link, backup)
        # A rename between two links to one file does nothing: the last writer was killed between its two renames.
        link.unlink(missing_ok=True)


def fsync_dir(folder: Path) -> None:
    """Flush a directory's entries to disk: without this a power cut can lose the name of a file that was fsynced."""
    if os.name == "nt":  # Windows cannot open directories
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not supported by the file system
            raise
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove temporary files left in a run directory by killed processes. The caller must hold the lock."""
    for base, _, names in os.walk(folder):
        for name in names:
            if not TEMPORARY.fullmatch(name):
                continue
            file = Path(base, name)
            if name.startswith(UNLOCKED_PREFIX):
                _remove_if_stale(file)
            else:
                with suppress(OSError):
                    file.unlink(missing_ok=True)


def _remove_if_stale(file: Path) -> None:
    with suppress(OSError):  # the writer has just finished, or the file cannot be removed, which does no harm
        if time.time() - file.stat().st_mtime > STALE_SECONDS:
            file.unlink()
