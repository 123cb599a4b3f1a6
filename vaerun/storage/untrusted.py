"""Files that may be damaged, or a stranger's: of bounded size and structure, or refused before they are taken in.

A run directory is something that people send each other. What is read of it is a regular file (a pipe would be waited
for without end) that lies in it (a link could lead anywhere), and no larger or deeper than what vaerun itself writes.
Everything here raises OSError and ValueError; whoever reads says what that means for the user.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

MIB = 1 << 20
RECORD_BYTES = 16 * MIB  # of a result.json, which has some 10 kB
CONFIG_BYTES = MIB  # of a config.yaml, which has some 5 kB
PLAN_BYTES = 256 * MIB  # of a sweep.json: some 5 kB for each job
DEPTH = 50
CONFIG_VALUES, JSON_VALUES = 10_000, 10_000_000
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # half of a letter: alone it is no unicode, and no file takes it


def open_regular(path: Path, within: Path | None = None) -> io.BufferedReader:
    """Opens a regular file to be read as bytes.

    Arguments:
        path: of the file.
        within: a folder that the file must lie in once all links are followed; None: anywhere.

    Raises ValueError for a pipe, a device and a link that leads out of `within`, OSError as `open`.
    """
    if within is not None and not leads_into(path, within):
        raise ValueError("it is a link that leads out of the folder")
    # Without O_NONBLOCK opening a pipe waits until somebody writes into it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(21, "Is a directory", str(path))
        if not stat.S_ISREG(kind):
            raise ValueError("it is no regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def leads_into(path: Path, folder: Path) -> bool:
    """Whether a path, all its links followed, lies in a folder. A ring of links lies nowhere."""
    try:
        return Path(os.path.realpath(path, strict=False)).is_relative_to(os.path.realpath(folder))
    except (OSError, ValueError, RuntimeError):
        return False


def first_link_out(folder: Path) -> Path | None:
    """The first link below a folder that leads out of it, or None. What is written there could land anywhere."""
    for base, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            path = Path(base, name)
            if path.is_symlink() and not leads_into(path, folder):
                return path
    return None


def read_bytes(path: Path, most: int, within: Path | None = None) -> bytes:
    """A whole file of at most so many bytes."""
    with open_regular(path, within) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(most + 1)
    if max(size, len(content)) > most:
        raise ValueError(f"it has {max(size, len(content))} bytes, where at most {most} make sense")
    return content


def read_json(path: Path, most: int = RECORD_BYTES, within: Path | None = None) -> Any:
    """A JSON file's value, of which every part can be written again: integers of 64 bits, text that is unicode."""
    found = parse_json(read_bytes(path, most, within).decode("utf-8"))
    check_size(found, JSON_VALUES)
    return found


def parse_json(text: str) -> Any:
    """A JSON text's value. Raises ValueError for what is none, and as read_json says."""
    try:
        found = json.loads(text, parse_int=_whole)
        if _HALF.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("it has text that is no unicode: half a letter") from error
    return found


def _whole(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"it has an integer of {len(text)} characters, which is none of 64 bits")
    return int(text)


def check_size(value: Any, most: int) -> None:
    """Raises ValueError for more than so many values, or deep nesting: neither is walked through to the end."""
    stack, count = [(value, 0)], 0
    while stack:
        item, depth = stack.pop()
        count += 1
        if depth > DEPTH or count > most:
            raise ValueError("nested too deeply" if depth > DEPTH else "too many values")
        if isinstance(item, dict | list | tuple | set):
            stack += [(part, depth + 1) for part in (item.values() if isinstance(item, dict) else item)]
