"""Atomic file writes: at any moment, and after a crash, a path holds either the old content or the new one."""

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
UNLOCKED_PREFIX = ".job.json."  # written into a run directory by the process that starts the run, without its lock
STALE_SECONDS = 3600.0  # no write takes this long


def write_atomically(path: Path, content: bytes, backup: Path | None = None) -> None:
    """Write under a temporary name, fsync, rename, fsync the directory.

    Arguments:
        path: file to write.
        content: its complete new content.
        backup: where the previous content of `path` is kept; None: it is discarded.

    Raises RunError, one line, where the file cannot be written (disk full, read-only).
    """
    try:
        with open_atomically(path, backup) as file:
            file.write(content)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; its previous content is intact") from error


@contextmanager
def open_atomically(path: Path, backup: Path | None = None) -> Iterator[BinaryIO]:
    """Yield a temporary file that replaces `path` on a clean exit, once it is on disk. Raises OSError."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        _remove_if_stale(leftover)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # left by a killed process with the same PID, or a planted link
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
    if os.name == "nt":  # directories cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not supported by this file system
            raise
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a run directory. The caller holds its lock."""
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
    with suppress(OSError):  # its writer has just finished, or it cannot be removed and does no harm
        if time.time() - file.stat().st_mtime > STALE_SECONDS:
            file.unlink()
