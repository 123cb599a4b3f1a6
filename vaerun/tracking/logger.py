"""Logging of a run: a single call feeds metrics.jsonl, TensorBoard and the progress bar, so that they agree."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from vaerun.errors import RunError
from vaerun.storage.atomic import fsync_dir
from vaerun.text import format_fixed
from vaerun.tracking import tensorboard as events
from vaerun.tracking.progress import TrainingProgress
from vaerun.tracking.tensorboard import EventWriter

PROGRESS_METRICS = (("elbo",), ("reconstruction",), ("discriminator_loss", "generator_loss", "diversity"))
"""Metrics shown next to the progress bar: the first of these groups that is logged."""
END: dict[str, Any] = {}
"""Position after everything logged so far."""


def _end_of_last_line(file: BinaryIO) -> int:
    """Offset of the end of the last complete line, since a killed process may have left a partial one."""
    end = file.seek(0, os.SEEK_END)
    start = max(0, end - (1 << 16))
    file.seek(start)
    return start + file.read().rfind(b"\n") + 1


class RunLogHandler(logging.FileHandler):
    """Handler of run.log, which is opened with the first line. Raises RunError if the file cannot be written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; on failure raise, where logging would by default print a traceback and continue."""
        try:
            super().emit(record)
        except OSError as error:  # the file cannot be opened
            raise self._cannot_write(error) from error

    def handleError(self, record: logging.LogRecord) -> None:
        """Called by logging after a failed write."""
        error = sys.exception()
        if not isinstance(error, OSError):
            raise
        raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> RunError:
        why = error.strerror or error
        return RunError(f"cannot write {self.baseFilename}: {why}; run the same command again to resume")

    def close(self) -> None:
        """Close the file, ignoring a full disk: the failed write has already reported it."""
        with contextlib.suppress(OSError):
            super().close()


class RunLogger:
    """Logs the scalars, pictures and settings of a run.

    Arguments:
        folder: the run directory.
        position: where to continue metrics.jsonl and TensorBoard when resuming, as returned by `position()`; END: at
            their end; None: start anew.
        images_per_step: images per step, for images/s in the progress line.
        total_steps: number of steps of the run.
        show: show progress on standard error; without a terminal, as occasional plain lines.
    """

    def __init__(
        self,
        folder: Path,
        *,
        position: dict[str, Any] | None,
        start_step: int,
        total_steps: int,
        images_per_step: float,
        show: bool = True,
    ) -> None:
        self.folder, self.start_step = folder, start_step
        self.total_steps, self.show = total_steps, show
        self.path = folder / "metrics.jsonl"
        self._events: EventWriter | None = None
        try:
            if position is not None and self.path.exists():
                with open(self.path, "r+b") as file:  # discard steps after the checkpoint, which will be repeated
                    file.truncate(min(position.get("bytes", sys.maxsize), _end_of_last_line(file)))
            if position is None:  # discard the events of an earlier attempt without a checkpoint
                events.truncate(folder, {})
            elif "events" in position:
                events.truncate(folder, position["events"])
            self.file = open(self.path, "a" if position is not None else "w", encoding="utf-8")  # noqa: SIM115
            fsync_dir(folder)
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}") from error
        self._progress = TrainingProgress(total_steps, start_step, images_per_step)
        self._shown: dict[str, float] = {}

    @property
    def events(self) -> EventWriter:
        """The TensorBoard event file, opened lazily because importing TensorBoard is slow."""
        if self._events is None:
            self._events = EventWriter(self.folder, self.start_step)
        return self._events

    def log_scalars(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Log the scalars of a step, e.g. {"train/elbo": nats per image}."""
        line: dict[str, Any] = {"step": step, "epoch": round(epoch, 6)}
        line |= {k: (v if math.isfinite(v) else None) for k, v in values.items()}
        try:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
            from torch.utils.tensorboard.summary import scalar

            for tag, value in values.items():
                self.events.add(scalar(tag, value), step)
            self.events.flush()
        except OSError as error:
            raise self._cannot_write(error) from error
        names = {k.partition("/")[2] for k in values}
        shown = next((group for group in PROGRESS_METRICS if names & set(group)), ())
        self._shown |= {
            k: v for k, v in values.items() if k.startswith(("train/", "val/")) and k.split("/", 1)[1] in shown
        }

    def log_image(self, tag: str, picture: Tensor, step: int) -> None:
        """Log a picture [3 or 1, H, W] in [0, 1]."""
        from torch.utils.tensorboard.summary import image

        self._add([image(tag, picture, dataformats="CHW")], step)

    def log_hyperparameters(self, settings: dict[str, Any]) -> None:
        """Log settings for TensorBoard's HParams tab, see `hparams_summaries`."""
        from vaerun.tracking.hparams import hparams_summaries

        self._add(hparams_summaries(settings))

    def _add(self, summaries: Iterable[Any], step: int = 0) -> None:
        try:
            for summary in summaries:
                self.events.add(summary, step)
            self.events.flush()
        except OSError as error:
            raise self._cannot_write(error) from error

    def position(self) -> dict[str, Any]:
        """Flush to disk and return the current position, for a checkpoint: a resumed run then logs each step once."""
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
            if self._events is not None:
                self._events.flush(disk=True)
            return {"bytes": self.file.tell(), "events": events.file_sizes(self.folder)}
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> RunError:
        why = error.strerror or error
        return RunError(f"cannot write into {self.folder}: {why}; run the same command again to resume")

    def progress(self, step: int, epoch: int, epochs: int, validated: bool = False) -> None:
        """Show progress. Without a terminal, a line is always printed after the last validation."""
        if not self.show:
            return
        metrics = "".join(
            f"  {tag} {format_fixed(value, 1 if abs(value) >= 10 else 2)}" for tag, value in sorted(self._shown.items())
        )
        last = validated and step >= self.total_steps
        self._progress.update(step, f"epoch {epoch}/{epochs}{metrics}", last)

    def end_progress(self) -> None:
        """Close the progress bar."""
        self._progress.close()

    def close(self) -> None:
        """Flush and close everything."""
        self.end_progress()
        for file in (self.file, self._events):
            # Ignore a full disk: the failed write has already reported it.
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()
        self._events = None


class NullLogger:
    """A RunLogger that writes nothing, because another process of the run logs."""

    def log_scalars(self, step: int, epoch: float, values: dict[str, float]) -> None: ...
    def progress(self, step: int, epoch: int, epochs: int, validated: bool = False) -> None: ...
    def log_image(self, tag: str, picture: Tensor, step: int) -> None: ...
    def log_hyperparameters(self, settings: dict[str, Any]) -> None: ...
    def end_progress(self) -> None: ...
    def close(self) -> None: ...
    def position(self) -> dict[str, Any]:
        return {}
