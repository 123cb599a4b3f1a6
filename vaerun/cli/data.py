"""`vaerun-data`: prepare data sets ahead of a run, or pack them into files for offline machines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vaerun.cli.console import Parser, reporting_errors
from vaerun.signals import handling_signals, interrupt_on_signal
from vaerun.text import printable

if TYPE_CHECKING:
    from vaerun.data.arrays import Arrays


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    with reporting_errors("vaerun-data") as outcome:
        arguments = _parse(argv)
        with handling_signals(interrupt_on_signal("vaerun-data")):  # incomplete files are removed
            _run(arguments)
    return outcome.exit_code


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="vaerun-data", description="Downloads, verifies and converts data sets ahead of a run.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets to prepare (see --list)")
    parser.add_argument(
        "--root", metavar="DIR", help="folder with prepared files NAME.npz (default: $VAERUN_DATA, else the cache)"
    )
    parser.add_argument("--output", metavar="DIR", help="also write DIR/NAME.npz, to copy to another machine")
    parser.add_argument("--list", action="store_true", help="list the data sets and exit")
    arguments = parser.parse_args(argv)
    if not arguments.names and not arguments.list:
        parser.error("name a data set")
    return arguments


def _run(arguments: argparse.Namespace) -> None:
    from vaerun.data import cache, sources
    from vaerun.storage.paths import expand_user

    if arguments.list:
        for name, source in sources.BUILT_IN.items():
            print(f"{name:14}{(source.__doc__ or '').splitlines()[0]}")
    for name in arguments.names:
        cache.check_known(name)  # check all names before the first long download
    output = None if arguments.output is None else expand_user(arguments.output)
    for name in arguments.names:
        arrays = cache.load_built_in(name, root=arguments.root)
        if output is not None:
            where = str(_pack(arrays, output / f"{name}.npz"))
        else:
            file = getattr(arrays.train_images, "filename", None)
            where = "no copy needed" if file is None else str(Path(file).parent)
        print(printable(_line(name, arrays, where)), flush=True)


def _line(name: str, arrays: Arrays, where: str) -> str:
    shape = "x".join(str(size) for size in arrays.train_images.shape[1:])
    test = 0 if arrays.test_images is None else len(arrays.test_images)
    return (
        f"{name}: {len(arrays.train_images)} train / {test} test, {shape}, split {arrays.split}, "
        f"sha256 {arrays.sha256[:12]}, {where}"
    )


def _pack(arrays: Arrays, file: Path) -> Path:
    """Write a prepared data set to an npz file, atomically. Raises InputError if that fails."""
    import numpy as np

    from vaerun.data.arrays import FIELDS
    from vaerun.errors import InputError
    from vaerun.storage.atomic import open_atomically

    present = {field: getattr(arrays, field) for field in FIELDS if getattr(arrays, field) is not None}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open_atomically(file) as out:
            np.savez_compressed(out, **present, split=np.array(arrays.split))
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"--output: cannot write {file} ({reason}): name a writable folder") from error
    return file


if __name__ == "__main__":
    sys.exit(main())
