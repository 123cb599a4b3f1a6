"""What is shown of long work while it goes on, and where it is not."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from vaerun.signals import ShutdownSignal

FORECAST_SECONDS = 10.0  # work that takes less is not announced
PLAIN_SECONDS = 10.0  # between lines when standard error is no terminal

_here = threading.local()


@contextlib.contextmanager
def without_progress() -> Iterator[None]:
    """Inside, this thread shows no progress: another run of the process does."""
    _here.silent = True
    try:
        yield
    finally:
        _here.silent = False


def silent() -> bool:
    """Whether this thread shows no progress."""
    return getattr(_here, "silent", False)


class ProgressBar:
    """A progress line for one long piece of work, on standard error; plain and rare when that is no terminal.

    Arguments:
        words: what is being done.
        images: how many there are to do.
        unit: of what, if not images.
        stop: what the work looks at; whenever it does, the line shows that time passes.
        done: how many were done before.
    """

    def __init__(
        self, words: str, images: int, unit: str = "images", stop: ShutdownSignal | None = None, done: int = 0
    ) -> None:
        self.words, self.images, self.unit, self.stop, self.done, self._before = words, images, unit, stop, done, done
        self._outer: Callable[[], None] | None = None
        self.silent = False
        self._bar: Any = None
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> ProgressBar:
        self.silent = silent()
        if sys.stderr.isatty() and not self.silent:
            from tqdm import tqdm

            own: dict[str, Any] = {"leave": False, "dynamic_ncols": True, "initial": self._before}
            self._bar = tqdm(total=self.images, desc=self.words, unit=f" {self.unit}", **own)
        if self.stop is not None:
            self._outer, self.stop.on_check = self.stop.on_check, self.tick
        return self

    def __exit__(self, *exc: object) -> None:
        if self.stop is not None:
            self.stop.on_check = self._outer  # of a piece of work that this one is part of
        if self._bar is not None:
            self._bar.close()

    def forecast(self, seconds: float) -> None:
        """Say beforehand how long it will take, where that is worth a line."""
        if seconds < FORECAST_SECONDS or self.silent:
            return
        amount = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
        line = f"{self.words}: {self.images} {self.unit}, about {amount}"
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)

    def advance(self, images: int) -> None:
        """So many more are done."""
        self.done += images
        if self._bar is not None:
            self._bar.update(images)
        elif time.monotonic() - self._shown > PLAIN_SECONDS:
            self._print()

    def tick(self) -> None:
        """Still at work."""
        if time.monotonic() - self._shown < (PLAIN_SECONDS if self._bar is None else 1.0):
            return
        if self._bar is None:
            self._print()
        else:
            self._shown = time.monotonic()
            self._bar.refresh()

    def _print(self) -> None:
        self._shown = time.monotonic()
        if self.silent:
            return
        spent, now = self._shown - self._started, self.done - self._before
        time_left = f"{spent * (self.images - self.done) / now:.0f} s left" if now else f"{spent:.0f} s so far"
        print(f"{self.words}: {self.done}/{self.images} {self.unit}  {time_left}", file=sys.stderr, flush=True)
