"""Fault injection where a run opens, writes, flushes and renames files: a kill or a full disk; or memory runs out."""

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

import vaerun

SOURCE = str(Path(vaerun.__file__).parent)
REPORTS = tuple(f"{SOURCE}/{name}.py" for name in ("memory", "errors", "signals", "text"))
"""Code that reports an error, or a signal: it allocates nothing to speak of."""
SHORTAGES: list[Exception] = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: can't allocate memory: ..."),
    RuntimeError("std::bad_alloc"),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    RuntimeError("can't start new thread"),
    ImportError("libexample.so: failed to map segment from shared object"),
]
EVENTS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


class FaultInjector:
    """Counts the points of each kind that a run passes, and kills it at the n-th of one (see killing.py)."""

    def __init__(self, folder: Path, kind: str | None, n: int, fraction: float) -> None:
        self.folder, self.kind, self.n, self.fraction = str(folder), kind, n, fraction
        self.counts: Counter[str] = Counter()
        self.flushed: dict[int, int] = {}  # inode -> bytes
        self.enabled = True

    def is_target(self, kind: str) -> bool:
        self.counts[kind] += 1
        return kind == self.kind and self.counts[kind] == self.n

    def fail_if_full(self) -> None:
        """Fail as a full disk does, from the n-th call on."""
        self.is_target("full")
        if self.kind == "full" and self.counts["full"] >= self.n:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @staticmethod
    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        fsync, replace, builtin_open = os.fsync, os.replace, builtins.open

        def flush(fd: int) -> None:
            status = os.fstat(fd)
            self.fail_if_full()
            if self.is_target("torn"):
                before = self.flushed.get(status.st_ino, 0)
                if stat.S_ISREG(status.st_mode) and status.st_size > before:
                    os.ftruncate(fd, before + int(self.fraction * (status.st_size - before)))
                self.kill()
            fsync(fd)
            self.flushed[status.st_ino] = status.st_size

        def replace_file(source: Any, target: Any, **options: Any) -> None:
            replace(source, target, **options)
            if self.is_target("placed"):
                self.kill()

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            if not (self.enabled and event in EVENTS and str(arguments[0]).startswith(self.folder)):
                return
            if self.is_target("call"):
                self.kill()
            new = event == "open" and arguments[2] & os.O_CREAT and not os.path.exists(str(arguments[0]))
            if new or event in ("os.mkdir", "os.link"):
                self.fail_if_full()

        def open_file(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            opened = builtin_open(file, mode, *rest, **options)
            if not (str(file).startswith(self.folder) and set(mode) & set("wa+")):
                return opened
            status = os.fstat(opened.fileno())
            self.flushed[status.st_ino] = status.st_size  # earlier content is on disk
            return TornFile(opened, self)

        os.fsync, os.replace, builtins.open = flush, replace_file, open_file  # type: ignore[assignment]

        def call(frame: Any, event: str, argument: Any) -> None:
            # A call of a function of vaerun, or from there of a builtin one, such as torch's.
            file = frame.f_code.co_filename
            counts = event in ("call", "c_call") and file.startswith(SOURCE) and file not in REPORTS
            if counts and self.enabled and self.is_target("memory"):
                raise SHORTAGES[self.n % len(SHORTAGES)]

        sys.addaudithook(audit)
        if self.kind in (None, "memory"):
            sys.setprofile(call)


class TornFile:
    """A file whose n-th write is interrupted in the middle."""

    def __init__(self, file: Any, faults: FaultInjector) -> None:
        self._file, self._faults = file, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> TornFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def write(self, content: Any) -> int:
        faults = self._faults
        if faults.is_target("write"):
            self._write_part(content)
            faults.kill()
        try:
            faults.fail_if_full()
        except OSError:
            self._write_part(content)
            raise
        return self._file.write(content)

    def _write_part(self, content: Any) -> None:
        self._file.write(content[: int(self._faults.fraction * len(content))])
        self._file.flush()
