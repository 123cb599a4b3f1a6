"""Opens files that may be damaged or malicious, since run directories are shared between users.

A file in a run directory is only read if it is a regular file (a pipe would block forever), lies inside the directory
(a link could point anywhere) and is no larger than the files that vaerun writes. The functions raise OSError and
ValueError, which callers turn into error lines.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from vaerun.storage.paths import is_inside

MIB = 1 << 20
RESULT_BYTES = 16 * MIB  # limit on result.json, typically 10 kB
CONFIG_BYTES = MIB  # limit on config.yaml, typically 5 kB
PLAN_BYTES = 256 * MIB  # limit on sweep.json, typically 5 kB per job


def open_regular(path: Path, root: Path | None = None) -> io.BufferedReader:
    """Open a regular file for reading bytes.

    Arguments:
        path: file to open.
        root: directory that must contain the file once all links are resolved; None: anywhere.

    Raises ValueError for a pipe, a device or a link that points outside `root`, and OSError as `open` does.
    """
    if root is not None and not is_inside(path, root):
        raise ValueError("it is a link that leads out of the directory")
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(21, "Is a directory", str(path))
        if not stat.S_ISREG(mode):
            raise ValueError("it is not a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, maximum: int, root: Path | None = None) -> bytes:
    """Read a file of at most `maximum` bytes; for `root`, see open_regular."""
    with open_regular(path, root) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(maximum + 1)
    if max(size, len(content)) > maximum:
        raise ValueError(f"it has {max(size, len(content))} bytes, more than the limit of {maximum}")
    return content
