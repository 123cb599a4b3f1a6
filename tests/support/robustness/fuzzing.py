"""Running commands on mutated input. They may succeed, or end with one clear line and a documented exit code."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vaerun
from vaerun.config import plugins
from vaerun.data import sources
from vaerun.data.cache import load_arrays
from vaerun.errors import InputError

SECONDS = 20.0  # after which a command counts as hanging
ROOT = str(Path(vaerun.__file__).parents[1])
OPEN = "import sys, vaerun; run = vaerun.load_run(sys.argv[1]); run.model; run.data"
READ = (
    "import sys; from vaerun.data import cache, sources; "
    "cache.load_arrays(sys.argv[1], getattr(sources, sys.argv[1]), path=sys.argv[2], cached=False)"
)
CALLS = {"load_run": OPEN, "load_arrays": READ}
IGNORED = (".lock",)  # files that any reader may touch


@dataclass(frozen=True)
class Case:
    """One command on one input.

    Attributes:
        program: vaerun, vaerun-eval, vaerun-table, vaerun-data, or the functions load_run and load_arrays.
        words: its arguments.
        kept: folders in which nothing may change, whatever becomes of the command.
        safe: folders in which nothing may change unless it succeeds.
        env: environment variables.
    """

    program: str
    words: list[str]
    unchanged: tuple[Path, ...] = ()
    atomic: tuple[Path, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """How a command ended, and what is wrong with that, or ''."""

    code: int | str
    out: str
    err: str
    violation: str = ""


class TimedOut(BaseException):
    """The command took too long."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def time_out(*_: Any) -> None:
        raise TimedOut

    before = signal.signal(signal.SIGALRM, time_out)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def call(program: str, words: list[str]) -> int:
    """Run the command in this process and return its exit code."""
    if program in CALLS:
        try:
            if program == "load_run":
                run = vaerun.load_run(words[0])
                run.model  # noqa: B018
                run.data  # noqa: B018
            else:
                load_arrays(words[0], getattr(sources, words[0]), path=words[1], cached=False)
        except InputError as error:
            print(f"{program}: error: {error}", file=sys.stderr)
            return 2
        return 0
    if program != "vaerun":
        name = {"vaerun-eval": "evaluate", "vaerun-table": "table", "vaerun-data": "data"}[program]
        try:
            return int(importlib.import_module(f"vaerun.cli.{name}").main(words))
        except SystemExit as exit_:
            return int(exit_.code or 0)
    from vaerun.cli import main

    before = sys.argv
    sys.argv = ["vaerun", *words]
    try:
        main.main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    finally:
        sys.argv = before
    return 0


def _to_stderr(message: Any, category: Any, filename: str, line: int, *_: Any) -> None:
    print(warnings.formatwarning(message, category, filename, line), file=sys.stderr)


def run_in_process(case: Case) -> Outcome:
    """Run a case in this process."""
    out, err = io.StringIO(), io.StringIO()
    code: int | str
    before = {k: os.environ.get(k) for k in case.env}
    os.environ.update(case.env)
    plugins._declared.cache_clear()
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            time_limit(SECONDS),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("default")  # as in a separate process
            warnings.showwarning = _to_stderr  # else pytest captures it
            code = call(case.program, case.words)
    except TimedOut:
        code = "hang"
    except BaseException:
        code = "traceback"
        err.write(traceback.format_exc())
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        plugins._declared.cache_clear()
    return Outcome(code, out.getvalue(), err.getvalue())


def run_in_subprocess(case: Case) -> Outcome:
    """Run a case as a separate process."""
    words = [os.fsencode(word) for word in case.words]
    program: list[Any] = [Path(sys.executable).with_name(case.program)]
    if case.program in CALLS:
        program = [sys.executable, "-c", CALLS[case.program]]
    env = dict(os.environ) | {"PYTHONPATH": ROOT} | case.env
    try:
        process = subprocess.run([*program, *words], capture_output=True, timeout=6 * SECONDS, env=env, check=False)
    except subprocess.TimeoutExpired:
        return Outcome("hang", "", "")
    out, err = process.stdout.decode("utf-8", "replace"), process.stderr.decode("utf-8", "replace")
    if case.program in CALLS and process.returncode == 1 and "vaerun.errors.InputError: " in err:
        return Outcome(2, out, f"{case.program}: error: {err.splitlines()[-1].partition(': ')[2]}\n")
    return Outcome(process.returncode, out, err)


def snapshot(folders: tuple[Path, ...]) -> dict[str, bytes | None]:
    contents: dict[str, bytes | None] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.name not in IGNORED:
                contents[str(path)] = path.read_bytes() if path.is_file() and not path.is_symlink() else None
    return contents


WARNING = re.compile(r"[\w-]+: (warning|data): .*")
PROGRESS = re.compile(r".*(images/s|log-likelihood of|s left|s so far|about \d+ (s|min)).*")


def find_violation(case: Case, outcome: Outcome) -> str:
    """What is wrong with how a command ended, or ''."""
    lines = outcome.err.splitlines()
    if outcome.code in ("hang", "traceback"):
        return str(outcome.code)
    if "Traceback" in outcome.err:
        return "traceback"
    reported = [line for line in lines if not WARNING.fullmatch(line) and not PROGRESS.fullmatch(line)]
    if outcome.code == 0:
        return f"prints {reported[0]}" if reported else ""
    if outcome.code not in (1, 2):
        return f"exit code {outcome.code}"
    if len(reported) != 1 or not reported[0].startswith(f"{case.program}: error: "):
        return f"{len(reported)} lines: {reported[:3]}"
    if not reported[0].isprintable() or len(reported[0]) > 6000:
        return "the line is not printable, or too long"
    if outcome.out and outcome.code == 2 and not any(word.startswith("hydra.verbose") for word in case.words):
        return f"partial output {outcome.out[:60]!r}"
    return ""


@dataclass
class Tally:
    """How the commands on one kind of input ended."""

    kind: str
    endings: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        endings = ", ".join(f"{n} {what}" for what, n in sorted(self.endings.items()))
        return f"{self.kind}: {sum(self.endings.values())} inputs, {endings}; {self.seconds:.0f} s"


def run(
    kind: str, make: Callable[[int], Case], numbers: range, runner: Callable[[Case], Outcome] = run_in_process
) -> Tally:
    """Run the cases with these numbers."""
    tally, started = Tally(kind), time.monotonic()
    for number in numbers:
        case = make(number)
        unchanged, atomic = snapshot(case.unchanged), snapshot(case.atomic)
        outcome = runner(case)
        violation = find_violation(case, outcome)
        failed = outcome.code != 0
        if not violation and (snapshot(case.unchanged) != unchanged or (failed and snapshot(case.atomic) != atomic)):
            violation = "a user's file has changed"
        tally.endings[f"exit {outcome.code}" if not violation else "wrong"] += 1
        if violation:
            last = outcome.err.strip().splitlines()[-1:] or [""]
            description = f"{kind} {number}: {violation}; {case.program} {case.words!r}"
            tally.violations.append(f"{description[:600]}; {last[0][:300]}")
    tally.seconds = time.monotonic() - started
    return tally
