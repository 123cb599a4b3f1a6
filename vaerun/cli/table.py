"""`vaerun-table`: list the runs below a folder, or compare them over seeds, alongside published results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vaerun.cli.console import Parser, reporting_errors
from vaerun.errors import InputError
from vaerun.text import print_output, printable_lines

LISTED = ("md", "csv")  # formats available for the listing
FORMATS = (*LISTED, "tex", "png", "tensorboard")


def _parser() -> Parser:
    parser = Parser(
        prog="vaerun-table",
        allow_abbrev=False,
        description="Tabulates the runs below a folder. For the folder of a sweep, or with any option of the "
        "comparison: one cell per method and setting, mean and standard deviation over seeds. Otherwise: one row per "
        "run.",
        epilog="Columns of the listing: bounds and log-likelihoods are means over test (val: validation) images, in "
        "nats per image; K: importance samples; se: standard error over images. Rows that differ in pixels, likelihood "
        "or conditioning refer to different densities and cannot be compared. test/log_likelihood: as published, by "
        "importance sampling with q; test/amis, where recorded, does not depend on q and compares models. Adversarial "
        "models: Frechet distance in the features of vaerun's own classifier (not the Inception FID), with the number "
        "of generated images; precision and recall in these features; with ais, log p(x) under N(G(z), s2 I).",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with run directories, e.g. outputs")
    parser.add_argument("--list", action="store_true", help="one row per run, for a sweep too")
    parser.add_argument("--format", choices=FORMATS, default="md", help="tensorboard: events in DIR/table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write to FILE instead of printing (png needs it)")
    comparison = parser.add_argument_group("comparison", "defaults: the runs' configuration (sweep.table)")
    comparison.add_argument("--rows", metavar="KEYS", help="keys, e.g. model or model,trainer.epochs")
    comparison.add_argument("--columns", metavar="KEYS", help="keys, e.g. model.inference.steps; none: a single column")
    comparison.add_argument(
        "--metric", metavar="NAMES", action="append", default=[],
        help="names in result.json, a table each, e.g. test/log_likelihood,test/amis; repeatable. Default: "
        "test/log_likelihood (importance sampling with q, as published) and, where recorded, test/amis (adaptive "
        "importance sampling: compares models) and test/gap_posterior (KL(q || posterior))",
    )  # fmt: skip
    comparison.add_argument(
        "--published", metavar="NAME", help="published results to show alongside: vlae_cifar10, vlae_mnist_binary, none"
    )
    comparison.add_argument(
        "--where", metavar="KEY=VALUE", action="append", default=[], help="only these runs, also for --list; repeatable"
    )
    comparison.add_argument(
        "--mix", metavar="KEYS", action="append", default=[],
        help="keys (or all) that may differ within a cell; stated below the table",
    )  # fmt: skip
    comparison.add_argument("--paired", action="store_true", help="paired comparison by seed and by image")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    with reporting_errors("vaerun-table", lower="choose fewer runs with --where, or a folder with fewer") as outcome:
        try:
            _run(_parse(argv))
        except OSError as error:  # e.g. a name too long, or an unreadable folder
            raise InputError(f"{error.filename}: {error.strerror}: choose another path") from error
    return outcome.exit_code


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments = parser.parse_args(argv)
    options = _comparison_options(arguments)
    if arguments.list and "where" in options:
        options.remove("where")
    if arguments.list and (options or arguments.format not in LISTED):
        parser.error(
            f"--list cannot be combined with {f'--{options[0]}' if options else f'--format {arguments.format}'}"
        )
    if arguments.format == "png" and arguments.output is None:
        parser.error("--format png needs --output FILE")
    if arguments.format == "tensorboard" and arguments.output is not None:
        parser.error("--format tensorboard writes to DIR/table: leave out --output")
    if arguments.paired and arguments.format != "md":
        parser.error("--paired needs --format md")
    return arguments


def _comparison_options(arguments: argparse.Namespace) -> list[str]:
    names = ("rows", "columns", "metric", "published", "where", "mix", "paired")
    return [name for name in names if getattr(arguments, name)]


def _run(arguments: argparse.Namespace) -> None:
    from vaerun.storage.paths import expand_user

    folder = expand_user(arguments.folder)
    output = None if arguments.output is None else expand_user(arguments.output)
    requested = _comparison_options(arguments) or arguments.format not in LISTED
    compare = not arguments.list and (requested or (folder / "sweep.json").is_file())
    content = (_comparison if compare else _listing)(folder, arguments)
    if output is None:
        assert isinstance(content, str)
        print_output(printable_lines(content))
    else:
        print_output(printable_lines(_write(output, content)))


def _listing(folder: Path, arguments: argparse.Namespace) -> str:
    from vaerun.report import listing

    rows = listing.rows(folder, arguments.where)
    return listing.to_markdown(rows) if arguments.format == "md" else listing.to_csv(rows)


def _comparison(folder: Path, arguments: argparse.Namespace) -> str | bytes:
    from vaerun.report import formats
    from vaerun.report.comparison import compare
    from vaerun.report.significance import paired_tests
    from vaerun.report.table_spec import TableSpec

    spec = TableSpec(
        rows=arguments.rows,
        columns=arguments.columns,
        metric=",".join(arguments.metric) or None,
        published=arguments.published,
        where=tuple(arguments.where),
        mix=tuple(arguments.mix),
    )
    tables = compare(folder, spec)
    if arguments.format == "csv":
        return formats.to_csv(tables)
    if arguments.format == "tex":
        return formats.to_latex(tables)
    if arguments.format == "md":
        tests = [test for table in tables for test in paired_tests(table)] if arguments.paired else ()
        return formats.to_markdown(tables, tests)
    from vaerun.report.chart import to_png

    picture = to_png(tables)
    if arguments.format == "png":
        return picture
    from vaerun.report.tensorboard import write_events

    return f"written: {write_events(tables, formats.to_markdown(tables), picture)}"


def _write(path: Path, content: str | bytes) -> str:
    from vaerun.storage.atomic import write_atomically

    if not path.parent.is_dir():
        raise InputError(f"--output {path}: no such folder: {path.parent}: create it first")
    if path.is_dir():
        raise InputError(f"--output {path} is a folder: name a file")
    write_atomically(path, content if isinstance(content, bytes) else f"{content}\n".encode())
    return f"written: {path}"


if __name__ == "__main__":
    sys.exit(main())
