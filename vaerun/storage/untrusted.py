"""Opening files that may be damaged or malicious.

People send each other run directories. A file is read from one only if it is a regular file (a pipe would block
forever), lies inside the directory (a link could lead anywhere) and is no larger than what vaerun itself writes. The
functions raise OSError and ValueError; the caller says what that means for the user.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from vaerun.storage.paths import is_inside

MIB = 1 << 20
RESULT_BYTES = 16 * MIB  # limit on a result.json, which has some 10 kB
CONFIG_BYTES = MIB  # on a config.yaml, which has some 5 kB
PLAN_BYTES = 256 * MIB  # on a sweep.json: some 5 kB per job


def open_regular(path: Path, root: Path | None = None) -> io.BufferedReader:
    """Open a regular file for reading bytes.

    Arguments:
        path: file to open.
        root: directory that the file must lie in once all links are resolved; None: anywhere.

    Raises ValueError for a pipe, a device and a link that leads out of `root`, and OSError as `open` does.
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
    """Read a whole file of at most `maximum` bytes; `root` as in open_regular."""
    with open_regular(path, root) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(maximum + 1)
    if max(size, len(content)) > maximum:
        raise ValueError(f"it has {max(size, len(content))} bytes, more than the limit of {maximum}")
    return content
