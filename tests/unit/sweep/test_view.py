"""What a sweep shows while it runs, on a terminal and elsewhere."""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.sweeps.sweeping import Launcher, Sweeping

from vaerun.launch.job import JobOutcome, JobState
from vaerun.sweep.plan import PlannedJob
from vaerun.sweep.view import SweepProgress, latest_metrics, one_line
from vaerun.tracking import progress
from vaerun.tracking.progress import format_duration


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweeping:
    return Sweeping(tmp_path / "sweep", tmp_path / "notes", monkeypatch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def record(planned: PlannedJob, *lines: dict[str, Any], end: str = "\n") -> None:
    planned.job.folder.mkdir(exist_ok=True)
    text = "\n".join(json.dumps(line) for line in lines) + end
    (planned.job.folder / "metrics.jsonl").write_text(text)


def test_lines_where_there_is_no_terminal(
    sweep: Sweeping, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c, d = sweep.jobs(0, 1, 2, 3)
    view = SweepProgress([a, b, c, d], 2, 2)

    def shown() -> list[str]:
        view.show()
        return capsys.readouterr().err.splitlines()

    assert shown() == []
    view.on_start(a)
    view.on_start(b)
    record(a, {"step": 5, "train/elbo": -80.25}, {"step": 10, "train/elbo": -70.0, "val/elbo": -71.44})
    clock[0] += 59
    assert shown() == []
    clock[0] += 2
    assert shown() == ["2 of 6 done, 2 running, 0 failed; seed=0: 50% val/elbo -71.4; seed=1: 0%"]
    assert shown() == []
    clock[0] += 39
    view.on_end(a, JobOutcome(JobState.FINISHED, "", 100.0))
    view.on_end(b, JobOutcome(JobState.FAILED, "it\ndiverged", 30.0))
    assert capsys.readouterr().err.splitlines() == [
        "3/6 done: seed=0 (2 min)",
        "4/6 FAILED: seed=1 (30 s): it diverged",
    ]
    view.on_start(c)
    record(c, {"step": 20, "train/elbo": -60.0})
    clock[0] += 40
    # Two are left at 100 s each, on two slots; 40 s of the first have been done.
    assert shown() == ["3 of 6 done, 1 running, 1 failed, about 80 s left; seed=2: evaluating train/elbo -60.0"]
    view.on_end(c, JobOutcome(JobState.RESUMABLE, "", 41.0))
    view.on_end(d, JobOutcome(JobState.SKIPPED, "", 0.0))
    view.close()
    assert capsys.readouterr().err.splitlines() == ["4/6 stopped, saved: seed=2 (41 s)", "4/6 not started: seed=3"]


def test_time_left(sweep: Sweeping, clock: list[float]) -> None:
    jobs = sweep.jobs(*range(8))
    view = SweepProgress(jobs, 0, 3)
    assert view._time_left(clock[0]) is None
    for planned in jobs[:3]:
        view.on_start(planned)
    clock[0] += 60
    for planned in jobs[:2]:
        view.on_end(planned, JobOutcome(JobState.FINISHED, "", 60.0))
    view.on_end(jobs[2], JobOutcome(JobState.FAILED, "", 1.0))  # irrelevant to how long a job takes
    assert view._time_left(clock[0]) == pytest.approx(5 * 60 / 3)
    for planned in jobs[3:6]:
        view.on_start(planned)
    clock[0] += 30
    assert view._time_left(clock[0]) == pytest.approx((5 * 60 - 90) / 3)
    clock[0] += 300  # longer than any so far: never negative
    assert view._time_left(clock[0]) == pytest.approx(2 * 60 / 3)
    view.on_elsewhere(jobs[3])
    for planned in jobs[4:7]:
        view.on_end(planned, JobOutcome(JobState.FINISHED, "", 60.0))
    assert view._time_left(clock[0]) == pytest.approx(2 * 60 / 2)  # fewer than there are slots
    for planned in jobs[7:]:
        view.on_end(planned, JobOutcome(JobState.FINISHED, "", 0.0))
    assert view._time_left(clock[0]) is not None
    view.on_end(jobs[3], JobOutcome(JobState.FINISHED, "", 0.0))
    assert view._time_left(clock[0]) == 0.0


def test_time_left_goes_by_the_kind_of_job(sweep: Sweeping, clock: list[float]) -> None:
    """Jobs that differ only in the seed take the same time; the mean over all stands in until one is done."""
    jobs = sweep.jobs(*range(6))
    for planned, model in zip(jobs, ["vae", "vae", "vlae", "vlae", "draw", "draw"], strict=True):
        planned.job = replace(planned.job, overrides=[f"model={model}", f"seed={planned.number % 2}"])
    view = SweepProgress(jobs, 0, 2)
    for planned, seconds in ((jobs[0], 10.0), (jobs[2], 90.0)):
        view.on_start(planned)
        view.on_end(planned, JobOutcome(JobState.FINISHED, "", seconds))
    assert view._time_left(clock[0]) == pytest.approx((10 + 90 + 50 + 50) / 2)
    view.on_start(jobs[1])
    view.on_start(jobs[3])
    clock[0] += 30
    assert view._time_left(clock[0]) == pytest.approx((0 + 60 + 50 + 50) / 2)


def test_somebody_elses_job_says_nothing_about_time(sweep: Sweeping, clock: list[float]) -> None:
    a, b = sweep.jobs(0, 1)
    view = SweepProgress([a, b], 0, 1)
    view.on_start(a)
    view.on_elsewhere(a)
    clock[0] += 5
    view.on_end(a, JobOutcome(JobState.FINISHED, "", 0.0))
    assert view.seconds == {}
    assert view.counts[JobState.FINISHED] == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (30.4, "30 s"), (89.4, "89 s"), (90, "2 min"), (149, "2 min"), (151, "3 min"), (3569, "59 min"),
        (3571, "1 h 00 min"), (3900, "1 h 05 min"), (7199, "2 h 00 min"), (36000 * 10, "100 h 00 min"),
    ],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_one_line() -> None:
    assert one_line("  a\n\tb \r\n c") == "a b c"
    assert one_line("\x1b[2J\u202e\u200b\x00é✓") == " [2J   é✓"


def test_newest_records(tmp_path: Path) -> None:
    assert latest_metrics(tmp_path) == {}
    file = tmp_path / "metrics.jsonl"
    file.write_text("")
    assert latest_metrics(tmp_path) == {}
    lines = [json.dumps({"step": i, "train/elbo": -float(i), "filling": "x" * 90}) for i in range(1000)]
    lines[999] = json.dumps({"step": 999, "val/elbo": -3.5})
    file.write_text("\n".join(lines) + '\n{"step": 1000, "val/el')
    metrics = latest_metrics(tmp_path)
    assert (metrics["step"], metrics["val/elbo"], metrics["train/elbo"]) == (999, -3.5, -998.0)
    file.write_bytes(b"\xff\xfe\n[1]\n3\n" + json.dumps({"step": 1}).encode())
    assert latest_metrics(tmp_path) == {"step": 1}


def test_a_value_that_is_no_number(sweep: Sweeping) -> None:
    (planned,) = sweep.jobs(0)
    view = SweepProgress([planned], 0, 1)
    record(planned, {"step": 5, "val/elbo": None, "train/elbo": -4.0})
    assert view._status(planned) == "  seed=0: 25%  train/elbo -4.0"
    record(planned, {"step": 5, "val/elbo": float("nan")})
    assert view._status(planned) == "  seed=0: 25%  val/elbo nan"
    planned.total_steps = 0
    assert view._status(planned).startswith("  seed=0: 0%")


# -- on a terminal --------------------------------------------------------------------------------------------------


def screen(text: str, height: int, width: int) -> list[str]:
    """The rows on a terminal of this size, and those scrolled off it, after this text."""
    rows, at, column = [""], 0, 0
    for token in re.findall(r"\033\[\d*[AJ]|[\s\S]", text):
        if token == "\033[J":
            rows[at:] = [rows[at][:column]]
        elif token.startswith("\033["):
            at = max(len(rows) - height, 0, at - int(token[2:-1]))
        elif token == "\r":
            column = 0
        else:
            if token == "\n" or column == width:
                at, column = at + 1, 0
                rows += [""] * (at == len(rows))
            if token != "\n":
                rows[at] = rows[at][:column] + token + rows[at][column + 1 :]
                column += 1
    return [row for row in rows if row]


def on_terminal(call: Any, tmp_path: Path, rows: int = 24, columns: int = 80) -> str:
    """What a process whose standard error is a terminal of this size prints."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    launcher = Launcher(call, tmp_path / "out", terminal=theirs)
    os.close(theirs)
    text = b""
    try:
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            text += part
        assert launcher.wait() == 0
    finally:
        os.close(ours)
        launcher.end()
    return text.decode()


@pytest.mark.parametrize(("rows", "columns"), [(24, 80), (24, 40), (5, 80), (0, 0)])
def test_on_a_terminal(
    sweep: Sweeping, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: int, columns: int
) -> None:
    """The status stays in place below the ended jobs, cut to the height and width of the terminal.

    A terminal that reports no size (0 x 0) has one all the same.
    """
    monkeypatch.setattr(progress, "LIVE_SECONDS", 0.02)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("LINES", raising=False)
    long = "model.inference._target_=" + "x" * 60

    def call() -> None:
        jobs = sweep.jobs(*range(7))
        for planned in jobs:
            planned.job = replace(planned.job, label=f"{planned.label} {long}")
            record(planned, {"step": 5, "val/elbo": -3.25})
        view = SweepProgress(jobs, 0, 7)
        for planned in jobs:
            view.on_start(planned)
        for i in range(5):
            time.sleep(0.03)
            view.show()
            if i == 2:
                view.on_end(jobs[0], JobOutcome(JobState.FINISHED, "", 3.0))
        view.on_end(jobs[1], JobOutcome(JobState.FAILED, "oh", 3.0))
        print("the end", file=sys.stderr)
        time.sleep(0.03)
        view.show()
        view.close()
        print("after", file=sys.stderr)

    text = on_terminal(call, tmp_path, rows=rows, columns=columns)
    height, width = rows or 24, columns or 80
    before = screen(text[: text.index("1/7 done")].rpartition("\033[")[0], height, width)
    assert before[0] == "0 of 7 done, 7 running, 0 failed"[: width - 1]
    assert before[1] == f"  seed=0 {long}: 25%  val/elbo -3.2"[: width - 1]
    assert len(before) == 8 if height > 8 else 2 <= len(before) < height
    after = screen(text, height, width)
    done = [f"1/7 done: seed=0 {long} (3 s)", f"2/7 FAILED: seed=1 {long} (3 s): oh", "the end", "after"]
    assert after == [line[i : i + width] for line in done for i in range(0, len(line), width)]
