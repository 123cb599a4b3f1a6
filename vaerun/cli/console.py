"""What all commands share: their arguments, and the line and exit code that an error becomes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from vaerun.errors import EXIT_BAD_INPUT, EXPECTED, error_line, exit_code
from vaerun.signals import exit_on_signal, handling_signals
from vaerun.text import printable


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit."""
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: error: {printable(message)} (see {self.prog} --help)\n")


@dataclass
class Outcome:
    """How a command ended."""

    exit_code: int = 0


@contextmanager
def reporting_errors(program: str, on_exit: Callable[[], None] = lambda: None) -> Iterator[Outcome]:
    """Turn the errors of a command into one line on standard error and the exit code of the outcome.

    A bug passes through, with its traceback. Signals end the command at once until a run handles them itself, and are
    ignored afterwards: a late one must not change the exit code.

    Arguments:
        program: name of the command.
        on_exit: called before a signal ends the command.
    """
    outcome = Outcome()
    with handling_signals(exit_on_signal(program, on_exit)):
        try:
            yield outcome
        except EXPECTED as error:
            outcome.exit_code = exit_code(error)
            if not getattr(error, "reported", False):
                print(error_line(error, program), file=sys.stderr)
            sys.stdout.flush()
