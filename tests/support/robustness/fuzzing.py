"""Commands on mutated input, and what may come of them: success, or one clear line and a documented exit code."""

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
from vaerun.errors import InputError

SECONDS = 20.0  # after which a command hangs
ROOT = str(Path(vaerun.__file__).parents[1])
OPEN = "import sys, vaerun; run = vaerun.load_run(sys.argv[1]); run.model; run.data"
KEPT = (".lock",)  # files that whoever looks may touch


@dataclass(frozen=True)
class Case:
    """One command on one input.

    Attributes:
        program: vaerun, vaerun-eval, vaerun-table, vaerun-data or load_run.
        words: its arguments.
        kept: folders in which nothing may change, whatever becomes of the command.
        safe: folders in which nothing may change unless it succeeds.
        env: environment variables.
    """

    program: str
    words: list[str]
    kept: tuple[Path, ...] = ()
    safe: tuple[Path, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Ended:
    """How a command ended; `wrong`: what should not be, or ''."""

    code: int | str
    out: str
    err: str
    wrong: str = ""


class Hang(BaseException):
    """The command took too long."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    def leave(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, leave)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def call(program: str, words: list[str]) -> int:
    """The command in this process."""
    if program == "load_run":
        try:
            run = vaerun.load_run(words[0])
            run.model  # noqa: B018
            run.data  # noqa: B018
        except InputError as error:
            print(f"load_run: error: {error}", file=sys.stderr)
            return 2
        return 0
    if program != "vaerun":
        name = {"vaerun-eval": "evaluate", "vaerun-table": "table", "vaerun-data": "data"}[program]
        try:
            return int(importlib.import_module(f"vaerun.cli.{name}").main(words))
        except SystemExit as left:
            return int(left.code or 0)
    from vaerun.cli import main

    before = sys.argv
    sys.argv = ["vaerun", *words]
    try:
        main.main()
    except SystemExit as left:
        return int(left.code or 0)
    finally:
        sys.argv = before
    return 0


def _to_stderr(message: Any, category: Any, filename: str, line: int, *_: Any) -> None:
    print(warnings.formatwarning(message, category, filename, line), file=sys.stderr)


def here(case: Case) -> Ended:
    """Run in this process."""
    out, err = io.StringIO(), io.StringIO()
    code: int | str
    before = {k: os.environ.get(k) for k in case.env}
    os.environ.update(case.env)
    plugins._declared.cache_clear()
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            limited(SECONDS),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("default")  # as in a process of its own
            warnings.showwarning = _to_stderr  # where pytest would keep it for itself
            code = call(case.program, case.words)
    except Hang:
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
    return Ended(code, out.getvalue(), err.getvalue())


def apart(case: Case) -> Ended:
    """Run as a process of its own."""
    words = [os.fsencode(word) for word in case.words]
    program: list[Any] = [Path(sys.executable).with_name(case.program)]
    if case.program == "load_run":
        program = [sys.executable, "-c", OPEN]
    env = dict(os.environ) | {"PYTHONPATH": ROOT} | case.env
    try:
        done = subprocess.run([*program, *words], capture_output=True, timeout=6 * SECONDS, env=env, check=False)
    except subprocess.TimeoutExpired:
        return Ended("hang", "", "")
    out, err = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    if case.program == "load_run" and done.returncode == 1 and "vaerun.errors.InputError: " in err:
        return Ended(2, out, f"load_run: error: {err.splitlines()[-1].partition(': ')[2]}\n")
    return Ended(done.returncode, out, err)


def snapshot(folders: tuple[Path, ...]) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.name not in KEPT:
                found[str(path)] = path.read_bytes() if path.is_file() and not path.is_symlink() else None
    return found


WARNING = re.compile(r"[\w-]+: warning: .*")
PROGRESS = re.compile(r".*(images/s|log-likelihood of|s left|s so far|about \d+ (s|min)).*")


def judge(case: Case, ended: Ended) -> str:
    """What is wrong with how it ended, or ''."""
    lines = ended.err.splitlines()
    if ended.code in ("hang", "traceback"):
        return str(ended.code)
    if "Traceback" in ended.err:
        return "traceback"
    told = [line for line in lines if not WARNING.fullmatch(line) and not PROGRESS.fullmatch(line)]
    if ended.code == 0:
        return f"says {told[0]}" if told else ""
    if ended.code not in (1, 2):
        return f"exit code {ended.code}"
    if len(told) != 1 or not told[0].startswith(f"{case.program}: error: "):
        return f"{len(told)} lines: {told[:3]}"
    if not told[0].isprintable() or len(told[0]) > 6000:
        return "the line is not printable, or endless"
    if ended.out and ended.code == 2 and not any(word.startswith("hydra.verbose") for word in case.words):
        return f"partial output {ended.out[:60]!r}"
    return ""


@dataclass
class Count:
    """How the inputs of one kind ended."""

    kind: str
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        ends = ", ".join(f"{n} {what}" for what, n in sorted(self.ends.items()))
        return f"{self.kind}: {sum(self.ends.values())} inputs, {ends}; {self.seconds:.0f} s"


def run(kind: str, make: Callable[[int], Case], numbers: range, way: Callable[[Case], Ended] = here) -> Count:
    """Run the cases of these numbers."""
    count, started = Count(kind), time.monotonic()
    for number in numbers:
        case = make(number)
        kept, safe = snapshot(case.kept), snapshot(case.safe)
        ended = way(case)
        wrong = judge(case, ended)
        if not wrong and (snapshot(case.kept) != kept or (ended.code != 0 and snapshot(case.safe) != safe)):
            wrong = "a file of the user's has changed"
        count.ends[f"exit {ended.code}" if not wrong else "wrong"] += 1
        if wrong:
            last = ended.err.strip().splitlines()[-1:] or [""]
            count.wrong.append(f"{kind} {number}: {wrong}; {case.program} {case.words!r}"[:600] + f"; {last[0][:300]}")
    count.seconds = time.monotonic() - started
    return count
