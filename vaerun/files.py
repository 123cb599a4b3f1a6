"""Files that are either the old one or the new one, whole, whatever happens while they are written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
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


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested mapping by dotted keys, lists as leaves."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def last_records(path: Path) -> list[dict[str, Any]]:
    """The whole records among the last 64 KiB of a file of JSON lines, oldest first; none where it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 16)))
            lines = file.read().splitlines()
    except (OSError, ValueError):
        return []
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # the first one may be cut, the last one still being written
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


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
