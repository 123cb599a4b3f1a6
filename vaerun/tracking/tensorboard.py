"""TensorBoard event files, written synchronously.

torch's SummaryWriter writes in a thread, so that a checkpoint cannot tell what is on disk and a full disk kills the
thread with a traceback. Its file names, by which readers sort, follow the clock even if it is set back.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from vaerun.storage.atomic import fsync_dir

PATTERN = "events.out.tfevents.*"
DIGITS = 10  # digits of the seconds in a file name; sufficient until the year 2286


def file_sizes(folder: Path) -> dict[str, int]:
    """Sizes in bytes of the event files in a run directory, by name."""
    return {file.name: file.stat().st_size for file in folder.glob(PATTERN)}


def truncate(folder: Path, sizes: dict[str, int]) -> None:
    """Truncate the event files to these sizes and remove all others. Raises OSError."""
    for file in folder.glob(PATTERN):
        if file.name not in sizes:
            file.unlink()
        elif file.stat().st_size > sizes[file.name]:
            os.truncate(file, sizes[file.name])


def _second(name: str) -> int:
    """Creation time in a file's name; -1 if there is none, or if no later name could follow it."""
    part = name.split(".")[3:4]
    second = int(part[0]) if part and part[0].isdecimal() and len(part[0]) <= DIGITS else -1
    return second if second < 10**DIGITS - 1 else -1


class EventWriter:
    """Writes a new event file, which readers treat as the continuation of the existing ones in the directory.

    Arguments:
        folder: run directory, or another directory for TensorBoard.
        start_step: number of steps done; readers discard events of later steps, which will be repeated.

    Raises OSError.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        # Readers sort files by name: the new one must come last even if the clock was set back.
        second = max(int(time.time()), *(_second(name) + 1 for name in file_sizes(folder)), 0)
        name = f"events.out.tfevents.{second:0{DIGITS}d}.{socket.gethostname()}.{os.getpid()}.0"
        self._file = open(folder / name, "wb")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        version, source = "brain.Event:2", SourceMetadata(writer="vaerun")
        self._write(Event(wall_time=time.time(), file_version=version, source_metadata=source))
        if start_step:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=start_step + 1, session_log=start))
        self._file.flush()
        fsync_dir(folder)

    def add(self, summary: Any, step: int = 0) -> None:
        """Write a summary (a TensorBoard protocol buffer) of this step. Raises OSError."""
        self._write(self._event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def flush(self, disk: bool = False) -> None:
        """Flush to the operating system or, with `disk`, to disk. Raises OSError."""
        self._file.flush()
        if disk:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close. Raises OSError."""
        self._file.close()
