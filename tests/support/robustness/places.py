"""The places where a run opens, writes, flushes and renames files, in which it can be killed or told of a full disk."""

from __future__ import annotations

import builtins
import errno
import os
import signal
import stat
import sys
from collections import Counter
from pathlib import Path
from typing import Any

EVENTS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


class Places:
    """Counts the places of each kind that a run comes through, and lets it die at the n-th of one (see killing.py)."""

    def __init__(self, folder: Path, kind: str | None, n: int, share: float) -> None:
        self.folder, self.kind, self.n, self.share = str(folder), kind, n, share
        self.counts: Counter[str] = Counter()
        self.flushed: dict[int, int] = {}  # inode -> bytes
        self.on = True

    def here(self, kind: str) -> bool:
        self.counts[kind] += 1
        return kind == self.kind and self.counts[kind] == self.n

    def fill(self) -> None:
        """The disk is full from the n-th time on."""
        self.here("full")
        if self.kind == "full" and self.counts["full"] >= self.n:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @staticmethod
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        fsync, replace, opened = os.fsync, os.replace, builtins.open

        def flush(fd: int) -> None:
            status = os.fstat(fd)
            self.fill()
            if self.here("torn"):
                before = self.flushed.get(status.st_ino, 0)
                if stat.S_ISREG(status.st_mode) and status.st_size > before:
                    os.ftruncate(fd, before + int(self.share * (status.st_size - before)))
                self.die()
            fsync(fd)
            self.flushed[status.st_ino] = status.st_size

        def put(source: Any, target: Any, **options: Any) -> None:
            replace(source, target, **options)
            if self.here("placed"):
                self.die()

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            if not (self.on and event in EVENTS and str(arguments[0]).startswith(self.folder)):
                return
            if self.here("call"):
                self.die()
            new = event == "open" and arguments[2] & os.O_CREAT and not os.path.exists(str(arguments[0]))
            if new or event in ("os.mkdir", "os.link"):
                self.fill()

        def open_(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            made = opened(file, mode, *rest, **options)
            if not (str(file).startswith(self.folder) and set(mode) & set("wa+")):
                return made
            status = os.fstat(made.fileno())
            self.flushed[status.st_ino] = status.st_size  # what others wrote is on the disk
            return Halved(made, self)

        os.fsync, os.replace, builtins.open = flush, put, open_  # type: ignore[assignment]
        sys.addaudithook(audit)


class Halved:
    """A file whose n-th write is cut in the middle."""

    def __init__(self, file: Any, places: Places) -> None:
        self._file, self._places = file, places

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Halved:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def write(self, content: Any) -> int:
        places = self._places
        if places.here("write"):
            self._half(content)
            places.die()
        try:
            places.fill()
        except OSError:
            self._half(content)
            raise
        return self._file.write(content)

    def _half(self, content: Any) -> None:
        self._file.write(content[: int(self._places.share * len(content))])
        self._file.flush()
