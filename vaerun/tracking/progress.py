"""Progress display on standard error: redrawn in place on a terminal, otherwise plain lines at intervals."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from vaerun.signals import ShutdownSignal

ANNOUNCED_SECONDS = 10.0  # shorter tasks are not announced
LIVE_SECONDS = 1.0  # interval between updates on a terminal
PLAIN_SECONDS = 10.0  # interval between lines without a terminal

_thread = threading.local()


@contextlib.contextmanager
def without_progress() -> Iterator[None]:
    """Context in which this thread shows no progress, because another run of the process does."""
    _thread.silent = True
    try:
        yield
    finally:
        _thread.silent = False


def is_silent() -> bool:
    """Whether progress is disabled in this thread."""
    return getattr(_thread, "silent", False)


def safe_print(text: str, end: str = "\n", stream: TextIO | None = None) -> None:
    """Print to standard error, or to `stream`; a closed pipe is ignored."""
    stream = stream or sys.stderr
    try:
        try:
            print(text, end=end, file=stream, flush=True)
        except UnicodeEncodeError:
            print(text.encode("ascii", "replace").decode(), end=end, file=stream, flush=True)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # so that later writes do not fail, either
        os.close(null)


def format_duration(seconds: float) -> str:
    """Format a duration, such as 1 h 05 min, 12 min or 30 s."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Throttle:
    """Limits the frequency of updates.

    Arguments:
        wait: if true, the first update is due after an interval; otherwise at once.
    """

    def __init__(self, wait: bool = True) -> None:
        self._last = time.monotonic() if wait else -math.inf

    def due(self, seconds: float) -> bool:
        """Whether an update is due, `seconds` after the previous one; if so, start the next interval."""
        now = time.monotonic()
        if now - self._last < seconds:
            return False
        self._last = now
        return True


class _Task:
    """A task with a progress bar, drawn by tqdm on a terminal, or progress in plain lines.

    Arguments:
        total: amount of work, in `unit`.
        unit: unit of work.
        initial: amount of work done before.
        options: options of tqdm.
    """

    def __init__(self, total: int, unit: str, initial: int, **options: Any) -> None:
        self.total, self.unit, self.initial = total, unit, initial
        self._options = options
        self._bar: Any = None
        self._started = time.monotonic()
        self._throttle = Throttle()

    def _open_bar(self) -> None:
        from tqdm import tqdm

        shape: dict[str, Any] = {"total": self.total, "initial": self.initial, "unit": f" {self.unit}"}
        self._bar = tqdm(dynamic_ncols=True, **shape, **self._options)

    def close(self) -> None:
        """Close the bar if there is one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class ProgressBar(_Task):
    """Progress of one long task, shown while the context is active.

    Arguments:
        description: description of the task.
        total: amount of work, in `unit`.
        unit: unit of work.
        stop: shutdown signals; the elapsed time is updated whenever the task checks them.
        initial: amount of work done before.
    """

    def __init__(
        self,
        description: str,
        total: int,
        unit: str = "images",
        stop: ShutdownSignal | None = None,
        initial: int = 0,
    ) -> None:
        super().__init__(total, unit, initial, desc=description, leave=False)
        self.description, self.stop, self.done = description, stop, initial
        self._outer: Callable[[], None] | None = None
        self._forecast_due = True
        self.silent = False

    def __enter__(self) -> ProgressBar:
        self.silent = is_silent()
        if sys.stderr.isatty() and not self.silent:
            self._open_bar()
        if self.stop is not None:
            self._outer, self.stop.on_check = self.stop.on_check, self.tick
        return self

    def __exit__(self, *exc: object) -> None:
        if self.stop is not None:
            self.stop.on_check = self._outer  # callback of the enclosing task
        self.close()

    def forecast(self, seconds: float) -> None:
        """Announce how long the task will take, if it is long enough."""
        self._forecast_due = False
        if seconds < ANNOUNCED_SECONDS or self.silent:
            return
        line = f"{self.description}: {self.total} {self.unit}, about {format_duration(seconds)}"
        if self._bar is None:
            safe_print(line)
        else:
            self._bar.write(line, file=sys.stderr)

    def advance(self, amount: int) -> None:
        """Add to the amount of work done; the first part gives a forecast, if there was none."""
        self.done += amount
        if self._bar is not None:
            self._bar.update(amount)
        elif self._throttle.due(PLAIN_SECONDS):
            self._print()  # with the time left
            self._forecast_due = False
        if self._forecast_due and amount and self.done < self.total:
            self.forecast((time.monotonic() - self._started) * (self.total - self.initial) / amount)

    def tick(self) -> None:
        """Update the elapsed time on display."""
        if not self._throttle.due(PLAIN_SECONDS if self._bar is None else LIVE_SECONDS):
            return
        if self._bar is None:
            self._print()
        else:
            self._bar.refresh()

    def _print(self) -> None:
        if self.silent:
            return
        elapsed, done = time.monotonic() - self._started, self.done - self.initial
        time_left = f"{elapsed * (self.total - self.done) / done:.0f} s left" if done else f"{elapsed:.0f} s so far"
        safe_print(f"{self.description}: {self.done}/{self.total} {self.unit}  {time_left}")


class TrainingProgress(_Task):
    """Progress of training, in images.

    Arguments:
        total_steps: number of steps of the run.
        start_step: number of steps done before.
        images_per_step: mean number of images per step.
    """

    def __init__(self, total_steps: int, start_step: int, images_per_step: float) -> None:
        bar_format = "{desc}  {percentage:3.0f}%|{bar}| {rate_fmt}  {remaining} left"
        super().__init__(round(total_steps * images_per_step), "images", 0, unit_scale=True, bar_format=bar_format)
        self.total_steps, self.start_step, self.images_per_step = total_steps, start_step, images_per_step

    def update(self, step: int, description: str, last: bool = False) -> None:
        """Move to this step; without a terminal, print a line if one is due or this is the last."""
        if is_silent():
            return
        if sys.stderr.isatty():
            if self._bar is None:
                self.initial = round((step - 1) * self.images_per_step)
                self._open_bar()
            self._bar.set_description_str(description, refresh=False)
            self._bar.update(round(step * self.images_per_step) - self._bar.n)
        elif self._throttle.due(PLAIN_SECONDS) or last:
            steps_per_second = (step - self.start_step) / max(time.monotonic() - self._started, 1e-9)
            left = (self.total_steps - step) / max(steps_per_second, 1e-9)
            safe_print(f"{description}  {steps_per_second * self.images_per_step:.0f} images/s  {left:.0f} s left")


class StatusBlock:
    """Status lines below all other output: redrawn on a terminal, otherwise joined into one plain line.

    Arguments:
        plain_seconds: interval between lines if standard error is not a terminal.
    """

    def __init__(self, plain_seconds: float) -> None:
        self.live = sys.stderr.isatty()
        self.plain_seconds = plain_seconds
        self._throttle = Throttle(wait=not self.live)
        self._drawn = 0  # number of lines on the screen

    def due(self) -> bool:
        """Whether an update is due."""
        return self._throttle.due(LIVE_SECONDS if self.live else self.plain_seconds)

    def draw(self, lines: Sequence[str]) -> None:
        """Replace the block by these lines."""
        if not self.live:
            safe_print("; ".join(" ".join(line.split()) for line in lines))
            return
        self.erase()
        rows, columns = _terminal_size()
        if len(lines) > rows - 1:  # lines that have scrolled off the screen cannot be redrawn
            fitting = max(1, rows - 2)
            lines = [*lines[:fitting], f"  and {len(lines) - fitting} more"]
        safe_print("\n".join(line[: max(1, columns - 1)] for line in lines))
        self._drawn = len(lines)

    def print(self, line: str) -> None:
        """Print a permanent line above the block."""
        self.erase()
        safe_print(line)

    def erase(self) -> None:
        """Remove the block from the terminal."""
        if self._drawn:
            safe_print(f"\033[{self._drawn}A\033[J", end="")
            self._drawn = 0


def _terminal_size() -> tuple[int, int]:
    """Rows and columns of the terminal on standard error."""
    try:
        columns, rows = os.get_terminal_size(sys.stderr.fileno())
    except OSError:  # standard error is closed, or not a terminal
        columns = rows = 0
    return rows or 24, columns or 80
