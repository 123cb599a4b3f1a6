"""Shared by all commands: argument parsing, and conversion of errors to one line and an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from vaerun.errors import EXIT_BAD_INPUT, EXPECTED, RunError, error_line, exit_code
from vaerun.memory import reporting_out_of_memory
from vaerun.signals import exit_on_signal, handling_signals
from vaerun.text import print_output, printable


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports errors in one line, without printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with the code for bad input."""
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: error: {printable(message)} (see {self.prog} --help)\n")


@dataclass
class Outcome:
    """The exit code of a command."""

    exit_code: int = 0


@contextmanager
def reporting_errors(
    program: str, on_exit: Callable[[], None] = lambda: None, lower: str = "use a machine with more memory"
) -> Iterator[Outcome]:
    """Report expected errors in one line on standard error, and set the exit code of the outcome accordingly.

    Other exceptions are bugs and propagate. A signal ends the command at once, unless a run has installed its own
    handlers; after the block, signals are ignored so that a late one cannot change the exit code.

    Arguments:
        program: name of the command.
        on_exit: called before a signal ends the command.
        lower: what to do if memory runs out where no guard further in says so.
    """
    outcome = Outcome()
    with handling_signals(exit_on_signal(program, on_exit)):
        try:
            with reporting_out_of_memory(RunError, f"memory ran out: {lower}"):
                yield outcome
        except EXPECTED as error:
            outcome.exit_code = exit_code(error)
            if not getattr(error, "reported", False):
                print_output(error_line(error, program), sys.stderr)
            sys.stdout.flush()
