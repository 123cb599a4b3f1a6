"""Errors that are not bugs of vaerun's, the exit code of each, and the line that reports it."""

from __future__ import annotations

import signal

from vaerun.text import printable

EXIT_FAILED = 1  # a run failed
EXIT_BAD_INPUT = 2
EXIT_BUSY = 74  # of a job's process: another process is using the run directory
EXIT_RESUMABLE = 75  # stopped after saving: the same command resumes
EXIT_INTERRUPTED = 130  # by Ctrl-C

MAXIMUM_LENGTH = 4000  # characters of a line, which may quote a text of any length


class InputError(ValueError):
    """The user's input cannot be used. One line: what is wrong, where, what to do.

    Text quoted from untrusted input loses its control codes.
    """

    exit_code = EXIT_BAD_INPUT
    reported = False  # whether its line has been printed, by the process or thread where it was raised

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message, MAXIMUM_LENGTH))


class RunError(RuntimeError):
    """A run failed for a known cause (a loss that is not finite, a full disk). One line."""

    exit_code = EXIT_FAILED
    reported = False

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message, MAXIMUM_LENGTH))


class Interrupted(BaseException):
    """A signal stopped the run, after it saved its state if it had begun.

    A BaseException, like KeyboardInterrupt, so that a sweep does not mistake it for the failure of one job. 75 means
    "try again": after SIGTERM, SIGUSR1, SIGUSR2 and SIGHUP the same command resumes.
    """

    reported = False

    def __init__(self, signum: int, advice: str = "run the same command again to resume") -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; {advice}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        return EXIT_INTERRUPTED if self.signum == signal.SIGINT else EXIT_RESUMABLE


EXPECTED = (InputError, RunError, Interrupted, KeyboardInterrupt)
"""Errors reported in one line. Any other exception is a bug and shows its traceback."""


def exit_code(error: BaseException | None) -> int:
    """The exit code of a process that ends with this error; None: without one."""
    if error is None:
        return 0
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return error.exit_code if isinstance(error, InputError | RunError | Interrupted) else EXIT_FAILED


def error_line(error: BaseException, program: str = "vaerun", prefix: str = "") -> str:
    """The line that reports one of EXPECTED: `vaerun: error: ...`, without `error` for an interruption.

    Arguments:
        error: to report.
        program: whose line it is.
        prefix: which of several runs it is about, such as "seed 3: ".
    """
    if isinstance(error, KeyboardInterrupt):
        return f"{program}: {prefix}interrupted"
    label = "" if isinstance(error, Interrupted) else "error: "
    return f"{program}: {label}{prefix}{printable(error)}"
