"""Files that are either the old one or the new one, whole, whatever happens while they are written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import filelock

from vaerun.errors import RunError


def write_atomically(path: Path, content: bytes) -> None:
    """Write under a temporary name, flush to the disk, rename. Raises RunError in one line (disk full, read-only)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror or error}; what was there before is intact") from error


def write_json(path: Path, record: dict[str, Any]) -> None:
    """A record as indented JSON; numbers that JSON does not know (NaN, infinities) become null."""
    write_atomically(path, (json.dumps(finite(record), indent=2, ensure_ascii=False) + "\n").encode())


def finite(value: Any) -> Any:
    """The same structure with non-finite floats replaced by None."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    return value


LOOK_SECONDS = 0.06  # another one who only looks has the lock for a moment too


def held(folder: Path) -> bool:
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
