"""What the commands without Hydra share."""

from __future__ import annotations

import argparse
from typing import NoReturn

from vaerun.text import printable


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are one line with exit code 2, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Print it and exit."""
        self.exit(2, f"{self.prog}: error: {printable(message)} (see {self.prog} --help)\n")
