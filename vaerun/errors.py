"""Expected errors (as opposed to bugs), their exit codes, and the lines that report them."""

from __future__ import annotations

import signal

from vaerun.text import printable

EXIT_FAILED = 1  # a run failed
EXIT_BAD_INPUT = 2
EXIT_BUSY = 74  # job process only: another process is using the run directory
EXIT_RESUMABLE = 75  # stopped after saving: the same command resumes
EXIT_INTERRUPTED = 130  # Ctrl-C

MAXIMUM_LENGTH = 4000  # characters in an error line, which may quote arbitrarily long text


class InputError(ValueError):
    """Invalid user input. The message is one line: what is wrong, where, and what to do.

    Control characters are removed, since the message may quote untrusted input.
    """

    exit_code = EXIT_BAD_INPUT
    reported = False  # whether the process or thread that raised it has already printed its line
    out_of_memory = False  # whether its line says that memory ran out (memory.py)

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message, MAXIMUM_LENGTH))


class RunError(RuntimeError):
    """A run failed for a known reason, such as a non-finite loss or a full disk. The message is one line."""

    exit_code = EXIT_FAILED
    reported = False
    out_of_memory = False

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message, MAXIMUM_LENGTH))


class Interrupted(BaseException):
    """A signal stopped the run; if training had begun, its state was saved.

    Derived from BaseException, like KeyboardInterrupt, so that a sweep does not mistake it for a failed job. The exit
    code is 130 after SIGINT and 75 ("try again") after SIGTERM, SIGUSR1, SIGUSR2 and SIGHUP.
    """

    reported = False

    def __init__(self, signum: int, advice: str = "run the same command again to resume") -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; {advice}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        return EXIT_INTERRUPTED if self.signum == signal.SIGINT else EXIT_RESUMABLE


EXPECTED = (InputError, RunError, Interrupted, KeyboardInterrupt)
"""Errors that are reported in one line. Any other exception is a bug and is shown with its traceback."""


def exit_code(error: BaseException | None) -> int:
    """Exit code of a process that ends with this error, or None for success."""
    if error is None:
        return 0
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return error.exit_code if isinstance(error, InputError | RunError | Interrupted) else EXIT_FAILED


def error_line(error: BaseException, program: str = "vaerun", prefix: str = "") -> str:
    """Format one of the EXPECTED errors as `vaerun: error: ...`; for interruptions, `error` is omitted.

    Arguments:
        error: error to report.
        program: name of the command.
        prefix: identifies one of several runs, such as "seed 3: ".
    """
    if isinstance(error, KeyboardInterrupt):
        return f"{program}: {prefix}interrupted"
    label = "" if isinstance(error, Interrupted) else "error: "
    return f"{program}: {label}{prefix}{printable(error)}"
