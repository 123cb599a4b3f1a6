"""Mutated input of every kind ends in success, or in one clear line with a documented exit code.

A night's run, in parts and with its counts: `pytest -m nightly -s tests/robustness/fuzz/test_fuzz.py`. A failure
names the kind and the number of its input, which is the same each time: `bench` and `maker` make it again.
VAERUN_FUZZ_FIRST=100000 takes other inputs.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.robustness.fuzz_kinds import KINDS, Bench, maker
from support.robustness.fuzzing import Case, Ended, apart, here, judge, run
from torch.distributions import Distribution
from torchvision.datasets import utils

PART = 500  # inputs of one nightly test
FIRST = int(os.environ.get("VAERUN_FUZZ_FIRST", "0"))  # number of a night's inputs: others, for other inputs
NIGHTLY_APART, CI_APART = 200, 20  # as processes of their own
ROOM = 16 << 30  # bytes of addresses beyond those of the test itself: torch alone takes some


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Made once; each case writes its own input anew."""
    folder = tmp_path_factory.mktemp("fuzz")
    dtype, checked = torch.get_default_dtype(), Distribution._validate_args
    torch.set_default_dtype(torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAERUN_CACHE", str(folder / "cache"))
        patch.setenv("HYDRA_FULL_ERROR", "1")
        patch.delenv("VAERUN_DATA", raising=False)
        patch.setattr(utils, "_get_redirect_url", lambda url, **_: url)
        patch.setattr(utils, "_urlretrieve", lambda _, name, **more: shutil.copy(folder / "served" / "content", name))
        bench = Bench(folder)
        yield bench
        bench.close()
    torch.set_default_dtype(dtype)
    Distribution.set_default_validate_args(checked)


@pytest.fixture(autouse=True)
def surroundings(bench: Bench, single_precision: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The working folder, and a limit on memory: what asks for terabytes is to be refused, not served in part."""
    monkeypatch.chdir(bench.work)
    before = resource.getrlimit(resource.RLIMIT_AS)
    statistics = Path("/proc/self/statm")  # of Linux
    used = int(statistics.read_text().split()[0]) * resource.getpagesize() if statistics.exists() else 0
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_input(bench: Bench, kind: str) -> None:
    count = run(kind, maker(bench, kind), range(KINDS[kind][2]))
    assert not count.wrong, "\n".join([count.line(), *count.wrong])


def sample(number: int) -> list[tuple[str, int]]:
    """So many inputs of all kinds, in proportion; not those that CI runs in this process."""
    kinds = [kind for kind in KINDS for _ in range(KINDS[kind][1])]
    drawn = random.Random(number).sample(range(len(kinds)), number)
    return [(kinds[i], KINDS[kinds[i]][2] + i % 1000) for i in drawn]


def run_apart(bench: Bench, number: int) -> str:
    """Runs such a sample as processes; returns the counts."""
    lines, wrong = [], []
    chosen = sample(number)
    for kind in KINDS:
        for of, place in chosen:
            if of == kind:
                count = run(kind, maker(bench, kind), range(place, place + 1), apart)
                lines += list(count.ends)
                wrong += count.wrong
    assert not wrong, "\n".join(wrong)
    return ", ".join(f"{lines.count(end)} {end}" for end in sorted(set(lines)))


@pytest.mark.slow
def test_as_processes(bench: Bench) -> None:
    run_apart(bench, CI_APART)


@pytest.mark.nightly
def test_a_night_as_processes(bench: Bench, capsys: Any) -> None:
    counts = run_apart(bench, NIGHTLY_APART)
    with capsys.disabled():
        print(f"\nas processes: {NIGHTLY_APART} inputs, {counts}")


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("kind", "start"), [(kind, start) for kind, (_, night, _) in KINDS.items() for start in range(0, night, PART)]
)
def test_a_night(bench: Bench, kind: str, start: int, capsys: Any) -> None:
    numbers = range(start, min(start + PART, KINDS[kind][1]))
    count = run(kind, maker(bench, kind), range(FIRST + numbers.start, FIRST + numbers.stop))
    with capsys.disabled():
        print(f"\n{count.line()}")
    assert not count.wrong, "\n".join(count.wrong)


def test_a_night_has_twenty_thousand_inputs() -> None:
    assert sum(night for _, night, _ in KINDS.values()) >= 20_000
    assert sum(few for _, _, few in KINDS.values()) >= 500


GOOD, LINE = Case("vaerun", []), "vaerun: error: what, where, what to do\n"


@pytest.mark.parametrize(
    ("ended", "wrong"),
    [(Ended(0, "x", ""), False), (Ended(2, "", LINE), False), (Ended(1, "", f"vaerun: warning: x\n{LINE}"), False),
     (Ended("traceback", "", LINE), True), (Ended("hang", "", ""), True), (Ended(2, "", LINE + LINE), True),
     (Ended(2, "", "x\n"), True), (Ended(2, "x", LINE), True), (Ended(3, "", LINE), True), (Ended(-9, "", ""), True),
     (Ended(2, "", LINE.replace("what,", "\x1b[31m")), True), (Ended(0, "", "a library: warning\n"), True),
     (Ended(1, "", "Traceback (most recent call last):\n"), True)],
)  # fmt: skip
def test_the_judge(ended: Ended, wrong: bool) -> None:
    assert bool(judge(GOOD, ended)) == wrong


@pytest.mark.parametrize("how", ["raise", "change", "hang", "print"])
def test_the_harness_sees(bench: Bench, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What must not be is found: each once, planted in a command."""

    def planted(program: str, words: list[str]) -> int:
        if how == "raise":
            raise KeyError("planted")
        if how == "change":
            (bench.work / "mine.txt").write_text("other")
        while how == "hang":
            pass
        print("vaerun: error: x", file=sys.stderr)
        if how == "print":
            print("half a table")
        return 2

    monkeypatch.setattr("support.robustness.fuzzing.call", planted)
    monkeypatch.setattr("support.robustness.fuzzing.SECONDS", 0.3)
    count = run("planted", lambda _: Case("vaerun", [], kept=(bench.work,)), range(1), here)
    (bench.work / "mine.txt").write_text("keep")
    assert len(count.wrong) == 1
    assert {"raise": "traceback", "change": "changed", "hang": "hang", "print": "partial"}[how] in count.wrong[0]
    assert os.environ.get("VAERUN_PLUGINS") is None
