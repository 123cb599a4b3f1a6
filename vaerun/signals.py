"""Signals before a run looks out for them itself: the documented exit code and one line, whatever is being imported."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from vaerun.errors import Interrupted

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")  # the last: the terminal was closed
Handler = Callable[[int, FrameType | None], None]


def _heeded(name: str) -> bool:
    """Whether the system has this signal and nobody asked, by `nohup`, to go on when the terminal is closed."""
    return hasattr(signal, name) and (name != "SIGHUP" or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN)


SIGNALS = [getattr(signal, name) for name in _NAMES if _heeded(name)]


def install_handler(handler: Handler | signal.Handlers) -> None:
    """From now on signals go to this handler."""
    for signum in SIGNALS:
        signal.signal(signum, handler)


def is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported in this frame: an exception there may leave it half made, or be lost."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def exit_on_signal(program: str, tidy: Callable[[], None] = lambda: None) -> Handler:
    """A handler that ends the process at once: for one that has nothing to lose yet.

    Arguments:
        program: whose line is printed.
        tidy: called before.
    """

    def leave(signum: int, frame: FrameType | None = None) -> None:
        stopped = Interrupted(signum)
        with suppress(OSError):
            os.write(2, f"{program}: {stopped}\n".encode())
        with suppress(Exception):
            tidy()
        os._exit(stopped.exit_code)

    return leave


def interrupt_on_signal(program: str, tidy: Callable[[], None] = lambda: None) -> Handler:
    """A handler that raises Interrupted, or ends the process where that is not safe."""
    leave = exit_on_signal(program, tidy)

    def stop(signum: int, frame: FrameType | None = None) -> None:
        if is_importing(frame):
            leave(signum, frame)
        raise Interrupted(signum)

    return stop


@contextmanager
def handling_signals(handler: Handler) -> Iterator[None]:
    """A command: signals go to this handler, and afterwards nowhere, for a late one must not change the exit code."""
    install_handler(handler)
    try:
        yield
    finally:
        install_handler(signal.SIG_IGN)


class ShutdownSignal:
    """Collects SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGHUP while active; `check()` raises Interrupted once one has come.

    Inside `with stop.deferred():` (training and evaluation, which check at every step) a signal only sets the request;
    elsewhere it raises at once. A second SIGINT always raises at once.

    Arguments:
        outside: called with the signal and the frame instead of raising where one comes outside `deferred()`. Raising
            in the middle of an import (of torch, scikit-learn) is not safe; a process that has nothing to lose yet can
            end instead.
        parent: the process's, which collects the signals for this one too: of a run in a thread of its own.
    """

    def __init__(self, outside: Handler | None = None, parent: ShutdownSignal | None = None) -> None:
        self._signum: int | None = None
        self.outside, self.parent = outside, parent
        self._depth = 0
        self.on_check: Callable[[], None] | None = None  # what else is to be looked at while work goes on
        self._previous: dict[int, object] = {}

    @property
    def signum(self) -> int | None:
        """The signal that has come, or None."""
        return self._signum if self.parent is None or self._signum is not None else self.parent.signum

    @signum.setter
    def signum(self, value: int | None) -> None:
        self._signum = value

    def __enter__(self) -> ShutdownSignal:
        if self.parent is None and threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        first, again = self.signum is None, self.signum is not None and signum == signal.SIGINT
        if not first and not again:
            return  # Slurm signals every process of a job, and its parent passes the signal on: saving goes on
        self.signum = signum
        if self._depth == 0 and self.outside is not None:
            self.outside(signum, frame)
        if again or self._depth == 0:
            raise Interrupted(signum)

    def deferred(self) -> _Deferred:
        """A context in which signals wait for `check()`."""
        return _Deferred(self)

    def check(self) -> None:
        """Raises Interrupted when a signal has come."""
        if self.on_check is not None:
            self.on_check()
        if self.signum is not None:
            raise Interrupted(self.signum)


class _Deferred:
    def __init__(self, stop: ShutdownSignal) -> None:
        self.stop = stop

    def __enter__(self) -> None:
        self.stop._depth += 1

    def __exit__(self, *exc: object) -> None:
        self.stop._depth -= 1
