"""The link between a long computation and the run around it: signals, progress and warnings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from vaerun.signals import ShutdownSignal
from vaerun.tracking.progress import ProgressBar


class Monitor:
    """What a long computation reports to, and asks whether to go on. By default it is silent and never interrupts.

    Arguments:
        stop: the signals that `check` looks for.
        warn: receives each warning, one line.
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
        """A context in which a signal waits for `check` instead of raising at once."""
        return nullcontext() if self.stop is None else self.stop.deferred()

    def advance(self, count: int) -> None:
        """Report `count` more units as done."""
        if self._bar is not None:
            self._bar.advance(count)

    @property
    def wants_forecast(self) -> bool:
        """Whether `forecast` is shown to anybody: measuring one takes time."""
        return self._bar is not None

    def forecast(self, seconds: float) -> None:
        """Announce how long the whole task will take."""
        if self._bar is not None:
            self._bar.forecast(seconds)

    def warn(self, line: str) -> None:
        """Report something that the user should know, in one line."""
        if self._warn is not None:
            self._warn(line)

    def without_warnings(self) -> Monitor:
        """The same monitor, to which warnings are of no interest."""
        return Monitor(self.stop, None, self._bar)

    @contextmanager
    def task(self, description: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Monitor]:
        """Show a progress bar for one task; yields the monitor that advances it.

        Arguments:
            description: of the task, in front of the bar.
            total: units of work.
            unit: their name, in the plural.
            done: units done before, by an earlier process.
        """
        with ProgressBar(description, total, unit, stop=self.stop, initial=done) as bar:
            yield Monitor(self.stop, self._warn, bar)


SILENT = Monitor()
"""The default: shows nothing and is never interrupted."""
