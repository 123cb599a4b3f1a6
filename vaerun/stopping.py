"""Signals before a run looks out for them itself: the documented exit code and one line, whatever is being imported."""

from __future__ import annotations

import os
import signal
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


def answer(handler: Handler | signal.Handlers) -> None:
    """From now on signals go to this handler."""
    for signum in SIGNALS:
        signal.signal(signum, handler)


def importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported in this frame: an exception there may leave it half made, or be lost."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def leaves(program: str, tidy: Callable[[], None] = lambda: None) -> Handler:
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


def raises(program: str, tidy: Callable[[], None] = lambda: None) -> Handler:
    """A handler that raises Interrupted, or ends the process where that is not safe."""
    leave = leaves(program, tidy)

    def stop(signum: int, frame: FrameType | None = None) -> None:
        if importing(frame):
            leave(signum, frame)
        raise Interrupted(signum)

    return stop


@contextmanager
def listening(handler: Handler) -> Iterator[None]:
    """A command: signals go to this handler, and afterwards nowhere, for a late one must not change the exit code."""
    answer(handler)
    try:
        yield
    finally:
        answer(signal.SIG_IGN)
