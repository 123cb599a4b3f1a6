"""TensorBoard's files, written at once and by this process alone.

torch's SummaryWriter leaves the writing to a thread: what a checkpoint can count on is not known, a full disk ends the
thread with its own traceback, and a file's name (which readers take for its place in time) is the clock's.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from vaerun.storage.atomic import fsync_dir

FILES = "events.out.tfevents.*"
DIGITS = 10  # of the seconds in a name, until the year 2286


def sizes(folder: Path) -> dict[str, int]:
    """Bytes by name of the files in a run directory."""
    return {file.name: file.stat().st_size for file in folder.glob(FILES)}


def cut(folder: Path, known: dict[str, int]) -> None:
    """Bring the files back to these sizes, and remove those that are not among them. Raises OSError."""
    for file in folder.glob(FILES):
        if file.name not in known:
            file.unlink()
        elif file.stat().st_size > known[file.name]:
            os.truncate(file, known[file.name])


def _second(name: str) -> int:
    """What a file's name says when it was made; -1: it says nothing, or what no later name could follow."""
    part = name.split(".")[3:4]
    second = int(part[0]) if part and part[0].isdecimal() and len(part[0]) <= DIGITS else -1
    return second if second < 10**DIGITS - 1 else -1


class EventWriter:
    """A new file of TensorBoard's in a run directory, which readers take as going on where the others end.

    Arguments:
        folder: the run directory (or another one for TensorBoard).
        start_step: steps done before; a reader that has seen later ones, which are to come again, forgets them.

    Raises OSError.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        # Readers take the files in the order of their names, whatever the clock does meanwhile.
        second = max(int(time.time()), *(_second(name) + 1 for name in sizes(folder)), 0)
        name = f"events.out.tfevents.{second:0{DIGITS}d}.{socket.gethostname()}.{os.getpid()}.0"
        self._file = open(folder / name, "wb")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        version, source = "brain.Event:2", SourceMetadata(writer="vaerun")
        self._write(Event(wall_time=time.time(), file_version=version, source_metadata=source))
        if start_step:
            begun = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=start_step + 1, session_log=begun))
        self._file.flush()
        fsync_dir(folder)

    def add(self, summary: Any, step: int = 0) -> None:
        """A summary (a protocol buffer of TensorBoard's) of this step. Raises OSError."""
        self._write(self._event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def flush(self, disk: bool = False) -> None:
        """Give what was written to the system, and if asked to the disk. Raises OSError."""
        self._file.flush()
        if disk:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close. Raises OSError."""
        self._file.close()
