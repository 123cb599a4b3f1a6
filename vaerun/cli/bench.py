"""`vaerun-bench`: speed and memory compared with textbook implementations, another library and the hardware limit."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vaerun.cli.console import Parser, reporting_errors
from vaerun.deprecation import silence_torch_warnings
from vaerun.errors import InputError
from vaerun.text import did_you_mean

if TYPE_CHECKING:
    import torch

    from vaerun.bench.measure import Measurement

MIN_ROUNDS = 5  # the median of fewer is unreliable
NAMES = ("vlae", "vlae_bernoulli", "evaluation", "vae", "epoch", "startup", "prepare", "scaling", "steps", "together")


def _parser() -> Parser:
    parser = Parser(
        prog="vaerun-bench",
        allow_abbrev=False,
        description="Times vaerun, textbook implementations of the same and pythae by turns, and prints medians, "
        "ratios within a round, the fraction of the floor, and peak memory.",
        epilog="The floor is the time that the algorithm's operations and memory traffic take at the rates measured "
        "in the same rounds. On a busy machine only the ratios are meaningful.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; default: all")
    parser.add_argument("--rounds", type=int, default=7, help=f"rounds, at least {MIN_ROUNDS} (default: 7)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--threads", type=int, help="torch's CPU threads (default: torch's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all results to FILE, after each case")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that all works; the times are meaningless"
    )
    parser.add_argument("--list", action="store_true", help="list the benchmarks and exit")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    with reporting_errors("vaerun-bench", lower="name fewer benchmarks, or use --quick") as outcome:
        _run(_parse(argv))
    return outcome.exit_code


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(argv)
    for name in options.names:
        if name not in NAMES:
            parser.error(f"unknown benchmark {name}.{did_you_mean(name, NAMES)} Choices: {', '.join(NAMES)}")
    if options.rounds < MIN_ROUNDS:
        parser.error(f"--rounds must be at least {MIN_ROUNDS}, got {options.rounds}")
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    return options


def _run(options: argparse.Namespace) -> None:
    silence_torch_warnings()
    import torch
    from torch.distributions import Distribution

    from vaerun.bench.case import BenchSettings
    from vaerun.bench.machine import describe_machine
    from vaerun.bench.measure import measure, to_markdown
    from vaerun.bench.registry import BENCHMARKS
    from vaerun.storage.json_files import write_json

    if options.list:
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:16}{(benchmark.__doc__ or '').splitlines()[0]}")
        return
    if options.json is not None and not options.json.parent.is_dir():
        raise InputError(f"--json: no such folder: {options.json.parent}: create it first")
    if options.json is not None and options.json.is_dir():
        raise InputError(f"--json {options.json} is a folder: name a file")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    Distribution.set_default_validate_args(False)  # as in training: validating arguments would synchronise with the GPU
    setting = BenchSettings(_device(options.device), options.quick)
    facts = describe_machine(setting)
    print("\n".join(f"{key}: {value}" for key, value in facts.items()), flush=True)
    measured: list[Measurement] = []
    for name in options.names or NAMES:
        for case in BENCHMARKS[name](setting):
            measured.append(measure(name, case, setting, options.rounds))
            print(to_markdown(measured[-1]), flush=True)
            if options.json is not None:
                record = {"machine": facts, "rounds": options.rounds, "cases": [m.to_dict() for m in measured]}
                write_json(options.json, record | {"written": time.time()})


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device={name}: choose cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device={name}: choose cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device={name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


if __name__ == "__main__":
    sys.exit(main())
