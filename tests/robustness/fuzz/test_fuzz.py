"""Mutated input of every kind ends in success, or in one clear line with a documented exit code.

A night's run, in parts and with its counts: `pytest -m nightly -s tests/robustness/fuzz/test_fuzz.py`. A failure
names the kind and the number of its input, which is reproducible: `workspace` and `case_factory` make it again.
VAERUN_FUZZ_FIRST=100000 selects other inputs.
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
from support.models.precision import set_precision
from support.robustness.fuzz_kinds import KINDS, Workspace, case_factory
from support.robustness.fuzzing import Case, Outcome, find_violation, run, run_in_process, run_in_subprocess
from torch.distributions import Distribution
from torchvision.datasets import utils

PART = 500  # inputs of one nightly test
FIRST = int(os.environ.get("VAERUN_FUZZ_FIRST", "0"))  # number of the first nightly input
NIGHTLY_APART, CI_APART = 200, 20  # inputs run as separate processes
ROOM = 16 << 30  # address space beyond that of the test itself


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """Created once; each case writes its own input."""
    folder = tmp_path_factory.mktemp("fuzz")
    dtype, checked = torch.get_default_dtype(), Distribution._validate_args
    set_precision(torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAERUN_CACHE", str(folder / "cache"))
        patch.setenv("HYDRA_FULL_ERROR", "1")
        patch.delenv("VAERUN_DATA", raising=False)
        patch.setattr(utils, "_get_redirect_url", lambda url, **_: url)
        patch.setattr(utils, "_urlretrieve", lambda _, name, **more: shutil.copy(folder / "served" / "content", name))
        workspace = Workspace(folder)
        yield workspace
        workspace.close()
    set_precision(dtype)
    Distribution.set_default_validate_args(checked)


@pytest.fixture(autouse=True)
def surroundings(workspace: Workspace, single_precision: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The working directory, and a limit on memory: a request for terabytes must be rejected, not served in part."""
    monkeypatch.chdir(workspace.work)
    before = resource.getrlimit(resource.RLIMIT_AS)
    statistics = Path("/proc/self/statm")  # of Linux
    used = int(statistics.read_text().split()[0]) * resource.getpagesize() if statistics.exists() else 0
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_input(workspace: Workspace, kind: str) -> None:
    tally = run(kind, case_factory(workspace, kind), range(KINDS[kind][2]))
    assert not tally.violations, "\n".join([tally.line(), *tally.violations])


def sample(number: int) -> list[tuple[str, int]]:
    """Inputs of all kinds in proportion, other than those that CI runs in this process."""
    kinds = [kind for kind in KINDS for _ in range(KINDS[kind][1])]
    drawn = random.Random(number).sample(range(len(kinds)), number)
    return [(kinds[i], KINDS[kinds[i]][2] + i % 1000) for i in drawn]


def run_apart(workspace: Workspace, number: int) -> str:
    """Run such a sample as separate processes and return the counts."""
    lines, wrong = [], []
    chosen = sample(number)
    for kind in KINDS:
        for of, place in chosen:
            if of == kind:
                tally = run(kind, case_factory(workspace, kind), range(place, place + 1), run_in_subprocess)
                lines += list(tally.endings)
                wrong += tally.violations
    assert not wrong, "\n".join(wrong)
    return ", ".join(f"{lines.count(end)} {end}" for end in sorted(set(lines)))


@pytest.mark.slow
def test_as_processes(workspace: Workspace) -> None:
    run_apart(workspace, CI_APART)


@pytest.mark.nightly
def test_a_night_as_processes(workspace: Workspace, capsys: Any) -> None:
    counts = run_apart(workspace, NIGHTLY_APART)
    with capsys.disabled():
        print(f"\nas processes: {NIGHTLY_APART} inputs, {counts}")


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("kind", "start"), [(kind, start) for kind, (_, night, _) in KINDS.items() for start in range(0, night, PART)]
)
def test_a_night(workspace: Workspace, kind: str, start: int, capsys: Any) -> None:
    numbers = range(start, min(start + PART, KINDS[kind][1]))
    tally = run(kind, case_factory(workspace, kind), range(FIRST + numbers.start, FIRST + numbers.stop))
    with capsys.disabled():
        print(f"\n{tally.line()}")
    assert not tally.violations, "\n".join(tally.violations)


def test_a_night_has_twenty_thousand_inputs() -> None:
    assert sum(night for _, night, _ in KINDS.values()) >= 20_000
    assert sum(few for _, _, few in KINDS.values()) >= 500


GOOD, LINE = Case("vaerun", []), "vaerun: error: what, where, what to do\n"


@pytest.mark.parametrize(
    ("outcome", "is_wrong"),
    [(Outcome(0, "x", ""), False), (Outcome(2, "", LINE), False),
     (Outcome(1, "", f"vaerun: warning: x\n{LINE}"), False),
     (Outcome("traceback", "", LINE), True), (Outcome("hang", "", ""), True), (Outcome(2, "", LINE + LINE), True),
     (Outcome(2, "", "x\n"), True), (Outcome(2, "x", LINE), True), (Outcome(3, "", LINE), True),
     (Outcome(-9, "", ""), True), (Outcome(2, "", LINE.replace("what,", "\x1b[31m")), True),
     (Outcome(0, "", "a library: warning\n"), True), (Outcome(1, "", "Traceback (most recent call last):\n"), True)],
)  # fmt: skip
def test_the_judge(outcome: Outcome, is_wrong: bool) -> None:
    assert bool(find_violation(GOOD, outcome)) == is_wrong


@pytest.mark.parametrize("how", ["raise", "change", "hang", "print"])
def test_the_harness_sees(workspace: Workspace, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Violations planted in a command are detected, each once."""

    def planted(program: str, words: list[str]) -> int:
        if how == "raise":
            raise KeyError("planted")
        if how == "change":
            (workspace.work / "mine.txt").write_text("other")
        while how == "hang":
            pass
        print("vaerun: error: x", file=sys.stderr)
        if how == "print":
            print("half a table")
        return 2

    monkeypatch.setattr("support.robustness.fuzzing.call", planted)
    monkeypatch.setattr("support.robustness.fuzzing.SECONDS", 0.3)
    tally = run("planted", lambda _: Case("vaerun", [], unchanged=(workspace.work,)), range(1), run_in_process)
    (workspace.work / "mine.txt").write_text("keep")
    assert len(tally.violations) == 1
    assert {"raise": "traceback", "change": "changed", "hang": "hang", "print": "partial"}[how] in tally.violations[0]
    assert os.environ.get("VAERUN_PLUGINS") is None
