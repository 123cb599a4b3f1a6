"""`vaerun-table`: the runs below a folder, one row each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from vaerun.cli.show import show
from vaerun.errors import InputError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of argparse's usage and error; exit code 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, or 2 for unusable input."""
    parser = _Parser(
        prog="vaerun-table",
        description="One row for each run below a folder. Bounds and log-likelihoods are means over test "
        "(val: validation) images in nats per image; K: importance samples; se: standard error over images. Rows whose "
        "pixels, likelihood or what is given differ are of different densities. Of adversarial models: the Frechet "
        "distance of so many generated images in the features of vaerun's own classifier (not the Inception FID), "
        "precision and recall there, and where it was asked for ais, log p(x) under N(G(z), s2 I).",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder with run directories, e.g. outputs")
    parser.add_argument("--format", choices=("md", "csv"), default="md")
    arguments = parser.parse_args(argv)
    from vaerun.report import collect

    try:
        found = collect.rows(arguments.folder.expanduser())
    except InputError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    show(collect.markdown(found) if arguments.format == "md" else collect.comma_separated(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
