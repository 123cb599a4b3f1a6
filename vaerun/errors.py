"""The two ways in which a run ends early for a reason that is not a bug of vaerun's."""

from __future__ import annotations

import signal

from vaerun.text import printable

EXIT_FAILED = 1  # a run failed
EXIT_BAD_INPUT = 2
EXIT_BUSY = 74  # of a job's process: another process works in the run's folder
EXIT_RESUMABLE = 75  # stopped after saving: the same command resumes
EXIT_INTERRUPTED = 130  # by Ctrl-C

MOST_LETTERS = 4000  # of a line: what it quotes may be endless


class InputError(ValueError):
    """The user's input cannot be used. The message is one line: what was wrong, where, what to do. Exit code 2.

    What it quotes may be a stranger's: it keeps no control codes.
    """

    exit_code = EXIT_BAD_INPUT
    reported = False  # whether its line has been printed, by the process or the thread that it was raised in

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message, MOST_LETTERS))


class RunError(RuntimeError):
    """A run failed for a cause that can be named (a loss that is not finite, a full disk). One line. Exit code 1."""

    exit_code = EXIT_FAILED
    reported = False

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message, MOST_LETTERS))


class Interrupted(BaseException):
    """A signal asked the run to stop; its state is saved where there is one.

    A BaseException, like KeyboardInterrupt, so that a sweep does not take it for one job's failure and go on.
    Exit code 130 for SIGINT, 75 ("try again") for SIGTERM, SIGUSR1, SIGUSR2 and SIGHUP: the same command goes on.
    """

    reported = False

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; run the same command again to go on")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        return EXIT_INTERRUPTED if self.signum == signal.SIGINT else EXIT_RESUMABLE
