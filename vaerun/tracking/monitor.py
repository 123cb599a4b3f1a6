"""Connects a long computation to the surrounding run: signals, progress and warnings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from vaerun.signals import ShutdownSignal
from vaerun.tracking.progress import ProgressBar


class Monitor:
    """Receives progress and warnings from a long computation and tells it when to stop.

    By default, it is silent and never interrupts.

    Arguments:
        stop: shutdown signals, tested by `check`.
        warn: called with one line per warning.
        bar: receives progress; see `task`.
    """

    def __init__(
        self,
        stop: ShutdownSignal | None = None,
        warn: Callable[[str], None] | None = None,
        bar: ProgressBar | None = None,
    ) -> None:
        self.stop, self._warn, self._bar = stop, warn, bar

    def check(self) -> None:
        """Raise Interrupted if a signal is pending. Call it between units of work."""
        if self.stop is not None:
            self.stop.check()

    @property
    def interrupted(self) -> bool:
        """Whether a signal is pending: the next `check` raises."""
        return self.stop is not None and self.stop.signum is not None

    def deferred(self) -> AbstractContextManager[None]:
        """Context in which a signal is deferred until `check` instead of raising at once."""
        return nullcontext() if self.stop is None else self.stop.deferred()

    def advance(self, count: int) -> None:
        """Report that `count` more units are done."""
        if self._bar is not None:
            self._bar.advance(count)

    @property
    def wants_forecast(self) -> bool:
        """Whether a `forecast` would be shown; measuring one takes time."""
        return self._bar is not None

    def forecast(self, seconds: float) -> None:
        """Announce how long the whole task will take."""
        if self._bar is not None:
            self._bar.forecast(seconds)

    def warn(self, line: str) -> None:
        """Warn the user in one line."""
        if self._warn is not None:
            self._warn(line)

    def without_warnings(self) -> Monitor:
        """A copy of this monitor that discards warnings."""
        return Monitor(self.stop, None, self._bar)

    @contextmanager
    def task(self, description: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Monitor]:
        """Show a progress bar for one task; yields the monitor that advances it.

        Arguments:
            description: description of the task, in front of the bar.
            total: number of units of work.
            unit: name of the units, in the plural.
            done: number of units that an earlier process has done.
        """
        with ProgressBar(description, total, unit, stop=self.stop, initial=done) as bar:
            yield Monitor(self.stop, self._warn, bar)


SILENT = Monitor()
"""The default monitor, which shows nothing and never interrupts."""
