"""Files that are either the old one or the new one, whole, whatever happens while they are written."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from vaerun.errors import InputError, RunError
from vaerun.storage.untrusted import open_regular, parse_json

TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
"""Names of files that are being written, `.NAME.PID.tmp`; a process that is killed leaves them."""
ANYBODYS = ".job.json."  # written into a run's folder by whoever starts the run, without the folder's lock
STALE_SECONDS = 3600.0  # nobody writes one file for so long


def write_atomically(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Write under a temporary name, flush to the disk, rename, flush the folder's entry.

    Arguments:
        path: to write.
        content: all of it.
        keep: the name under which what was at `path` stays.

    Raises RunError in one line (disk full, read-only).
    """
    try:
        with replacing(path, keep) as file:
            file.write(content)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; what was there before is intact") from error


@contextmanager
def replacing(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A file to be written that takes the place of `path` once it is whole and on the disk. Raises OSError."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        _remove_if_stale(old)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a killed process with this one's number, or somebody's link
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            _keep(path, keep)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _keep(path: Path, name: Path) -> None:
    # A hard link, not a rename: there is no moment without a file at `path`.
    link = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # file systems without links
        os.replace(path, name)
    else:
        os.replace(link, name)
        # It stays where both are the same file: what was here before was killed between the two renames.
        link.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk: a file may be there after a power cut and its name not."""
    if os.name == "nt":  # where folders cannot be opened
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that do not know this
            raise
    finally:
        os.close(number)


def clear_temporaries(folder: Path) -> None:
    """Remove what killed processes have left half written in a run directory. The caller holds its lock."""
    for base, _, names in os.walk(folder):
        for name in names:
            if not TEMPORARY.fullmatch(name):
                continue
            file = Path(base, name)
            if name.startswith(ANYBODYS):
                _remove_if_stale(file)
            else:
                with suppress(OSError):
                    file.unlink(missing_ok=True)


def _remove_if_stale(file: Path) -> None:
    with suppress(OSError):  # somebody else's work is done, or it cannot be removed and does no harm
        if time.time() - file.stat().st_mtime > STALE_SECONDS:
            file.unlink()


def expand_user(path: str | Path) -> Path:
    """A path whose ~ or ~USER is a home directory's. Raises InputError where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # no HOME, as in some containers, or no such user
        raise InputError(f"{path}: there is no such home directory: write the whole path") from error


def write_json(path: Path, record: dict[str, Any]) -> None:
    """A record as indented JSON.

    Numbers that JSON does not know (NaN, infinities) become null, and bytes of a path that are no unicode become ?.
    """
    text = json.dumps(finite(record), indent=2, ensure_ascii=False)
    write_atomically(path, f"{text}\n".encode("utf-8", "replace"))


def finite(value: Any) -> Any:
    """The same structure with non-finite floats replaced by None."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    return value


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested mapping by dotted keys, lists as leaves."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def last_records(path: Path) -> list[dict[str, Any]]:
    """The whole records among the last 64 KiB of a file of JSON lines, oldest first; none where it cannot be read."""
    try:
        with open_regular(path, path.parent) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 16)))
            lines = file.read(1 << 16).splitlines()
    except (OSError, ValueError):
        return []
    found = []
    for line in lines:
        try:
            record = parse_json(line.decode())
        except ValueError:  # the first one may be cut, the last one still being written
            continue
        if isinstance(record, dict):
            found.append(record)
    return found
