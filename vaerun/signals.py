"""Signal handling: a signal ends a command with one line and an exit code, or is deferred until a run has saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from vaerun.errors import Interrupted

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")  # SIGHUP: the terminal was closed
Handler = Callable[[int, FrameType | None], None]


def _is_handled(name: str) -> bool:
    """Whether to handle this signal: it exists on this platform and, for SIGHUP, is not ignored by `nohup`."""
    return hasattr(signal, name) and (name != "SIGHUP" or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN)


SIGNALS = [getattr(signal, name) for name in _NAMES if _is_handled(name)]


def install_handler(handler: Handler | signal.Handlers) -> None:
    """Install a handler for all SIGNALS."""
    for signum in SIGNALS:
        signal.signal(signum, handler)


def is_importing(frame: FrameType | None) -> bool:
    """Whether this frame is inside an import, where an exception could be lost or leave a module half initialised."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def exit_on_signal(program: str, cleanup: Callable[[], None] = lambda: None) -> Handler:
    """Return a handler that exits at once, for a process that has nothing to save yet.

    Arguments:
        program: name of the command in the printed line.
        cleanup: called before exiting.
    """

    def exit_now(signum: int, frame: FrameType | None = None) -> None:
        interrupt = Interrupted(signum)
        with suppress(OSError):
            os.write(2, f"{program}: {interrupt}\n".encode())
        with suppress(Exception):
            cleanup()
        os._exit(interrupt.exit_code)

    return exit_now


def interrupt_on_signal(program: str, cleanup: Callable[[], None] = lambda: None) -> Handler:
    """Return a handler that raises Interrupted, or exits at once during an import, where raising is unsafe."""
    exit_now = exit_on_signal(program, cleanup)

    def interrupt(signum: int, frame: FrameType | None = None) -> None:
        if is_importing(frame):
            exit_now(signum, frame)
        raise Interrupted(signum)

    return interrupt


@contextmanager
def handling_signals(handler: Handler) -> Iterator[None]:
    """Handle signals inside the context and ignore them afterwards, so that a late one cannot change the exit code."""
    install_handler(handler)
    try:
        yield
    finally:
        install_handler(signal.SIG_IGN)


class ShutdownSignal:
    """Catches SIGINT, SIGTERM, SIGUSR1, SIGUSR2 and SIGHUP while active; `check()` then raises Interrupted.

    Inside `with stop.deferred():` (training and evaluation, which check at every step) a signal is only recorded;
    elsewhere it raises at once. A second SIGINT always raises at once.

    Arguments:
        on_immediate: called with the signal and the frame, instead of raising, if a signal arrives outside
            `deferred()`. Raising during an import (of torch, scikit-learn) is unsafe; a process with nothing to save
            can exit.
        parent: instance of the main thread, which receives the signals; for runs in other threads.
    """

    def __init__(self, on_immediate: Handler | None = None, parent: ShutdownSignal | None = None) -> None:
        self._signum: int | None = None
        self.on_immediate, self.parent = on_immediate, parent
        self._depth = 0
        self.on_check: Callable[[], None] | None = None  # called by every check(), e.g. to refresh a progress bar
        self._previous: dict[int, object] = {}

    @property
    def signum(self) -> int | None:
        """Number of the received signal, or None."""
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
        first, second_sigint = self.signum is None, self.signum is not None and signum == signal.SIGINT
        if not first and not second_sigint:
            return  # Slurm signals every process of a job, and the parent forwards the signal as well: keep saving
        self.signum = signum
        if self._depth == 0 and self.on_immediate is not None:
            self.on_immediate(signum, frame)
        if second_sigint or self._depth == 0:
            raise Interrupted(signum)

    def deferred(self) -> _Deferred:
        """Context in which signals are deferred until `check()`."""
        return _Deferred(self)

    def check(self) -> None:
        """Raise Interrupted if a signal has been received."""
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
