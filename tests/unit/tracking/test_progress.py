"""Progress on standard error: how often it is shown, in which form, and that it never ends the work."""

from __future__ import annotations

import os
import sys
import time

import pytest

from vaerun.tracking import progress
from vaerun.tracking.progress import (
    ProgressBar,
    StatusBlock,
    Throttle,
    TrainingProgress,
    safe_print,
    without_progress,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_throttle_waits_between_updates(clock: list[float]) -> None:
    throttle = Throttle()
    assert not throttle.due(10)
    clock[0] += 10
    assert throttle.due(10)
    assert not throttle.due(10)
    assert Throttle(wait=False).due(10)


def test_plain_lines_of_training(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    training = TrainingProgress(total_steps=100, start_step=10, images_per_step=2.5)
    training.update(11, "epoch 1/2")
    assert capsys.readouterr().err == ""
    clock[0] += 20
    training.update(50, "epoch 1/2  train/elbo -3.20")
    assert capsys.readouterr().err == "epoch 1/2  train/elbo -3.20  5 images/s  25 s left\n"
    training.update(51, "epoch 1/2")
    training.update(100, "epoch 2/2", last=True)
    assert capsys.readouterr().err == "epoch 2/2  11 images/s  0 s left\n"
    with without_progress():
        training.update(100, "epoch 2/2", last=True)
    assert capsys.readouterr().err == ""


def test_work_done_before_does_not_shorten_the_estimate(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("work", 100, unit="steps", initial=40) as bar:
        clock[0] += 20
        bar.advance(20)
    assert capsys.readouterr().err == "work: 60/100 steps  40 s left\n"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    training = TrainingProgress(total_steps=4, start_step=0, images_per_step=10)
    for step in (1, 4):
        training.update(step, f"epoch {step}")
    training.close()
    training.close()
    err = capsys.readouterr().err
    assert "epoch 4  100%|" in err
    assert err.count("\n") == 1  # the bar stays, once


def test_a_status_without_a_terminal_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    block = StatusBlock(0.0)
    block.draw(["1 of 2 done", "  seed=0:  50%"])
    block.print("done")
    block.erase()
    assert capsys.readouterr().err == "1 of 2 done; seed=0: 50%\ndone\n"


def test_a_closed_reader_is_no_failure() -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as closed:
        safe_print("lost", stream=closed)
        safe_print("lost as well", stream=closed)


def test_letters_that_the_stream_lacks() -> None:
    read, write = os.pipe()
    with open(read, encoding="ascii") as received:
        with open(write, "w", encoding="ascii") as stream:
            safe_print("caf\u00e9", stream=stream)
        assert received.read() == "caf?\n"


def test_intervals_are_read_when_they_are_needed(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = TrainingProgress(total_steps=10, start_step=0, images_per_step=1)
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    clock[0] += 1
    training.update(1, "epoch 1/1")
    assert capsys.readouterr().err == "epoch 1/1  1 images/s  9 s left\n"


def test_the_first_part_forecasts_the_whole(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("work", 100) as bar:
        for seconds in (2, 3):
            clock[0] += seconds
            bar.advance(10)
    assert capsys.readouterr().err == "work: 100 images, about 20 s\n"
    with ProgressBar("work", 100) as bar:
        bar.forecast(30)  # measured already
        clock[0] += 2
        bar.advance(10)
    assert capsys.readouterr().err == "work: 100 images, about 30 s\n"
    with ProgressBar("short", 100) as bar:
        clock[0] += 2
        bar.advance(90)
    assert capsys.readouterr().err == ""
