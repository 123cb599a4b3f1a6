"""Runs interrupted, killed or started twice, as real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs.commands import COMMAND, LONG, SHORT, assert_same_scalars, records, state, tensorboard

from vaerun.errors import Interrupted
from vaerun.signals import ShutdownSignal
from vaerun.tracking import progress as shown

pytestmark = pytest.mark.usefixtures("command_environment")


def start(folder: Path, env: dict[str, str], *more: str) -> subprocess.Popen[str]:
    words = [COMMAND, *LONG, *more, f"output_dir={folder}"]
    return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not (folder / "checkpoints" / "previous.pt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = start(folder, env)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 75), ("SIGUSR1", 75), ("SIGHUP", 75), ("SIGKILL", -signal.SIGKILL)]
)
def test_stopped_by_signal_goes_on(
    name: str, code: int, tmp_path: Path, env: dict[str, str], here: Any, uninterrupted: Path
) -> None:
    folder = tmp_path / "run"
    process = start(folder, env)
    wait_for_checkpoint(folder, process)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    killed = name == "SIGKILL"
    assert [line for line in err.splitlines() if not line.startswith(("epoch ", "vaerun: data: "))] == (
        [] if killed else [f"vaerun: stopped by {name}; run the same command again to resume"]
    )
    record = json.loads((folder / "result.json").read_text())
    assert record["status"] == ("running" if killed else "interrupted")
    assert 0 < torch.load(folder / "checkpoints" / "last.pt")["progress"]["step"] < 400
    time.sleep(1.1)  # TensorBoard orders its files by the second; starting the command anew takes longer than that
    code, _, err = here(*LONG, f"output_dir={folder}")
    assert code == 0, err
    first, second = (json.loads((f / "result.json").read_text()) for f in (folder, uninterrupted))
    assert first["metrics"] == second["metrics"]
    assert (folder / "metrics.jsonl").read_text() == (uninterrupted / "metrics.jsonl").read_text()
    assert_same_scalars(tensorboard(folder), records(folder))  # each step stands once


@pytest.mark.slow
def test_two_runs_at_once(tmp_path: Path, env: dict[str, str], here: Any) -> None:
    folder = tmp_path / "run"
    process = start(folder, env)
    try:
        wait_for_checkpoint(folder, process)
        process.send_signal(signal.SIGSTOP)  # so that it is surely still there
        before = state(folder)
        code, out, err = here(*LONG, f"output_dir={folder}")
        assert (code, out) == (2, "")
        assert f"another run is using {folder}" in err
        assert len(err.splitlines()) == 1
        assert state(folder) == before
    finally:
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130


@pytest.mark.slow
def test_two_starters_while_one_prepares(tmp_path: Path, env: dict[str, str]) -> None:
    """Both start at once in a new directory: one finishes, the other is rejected, nothing is removed."""
    words = [COMMAND, *SHORT, "output_dir=run"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(words, cwd=tmp_path, env=env, **pipes) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 2], [0, 0]), errors  # [0, 0]: the second came when the first had finished
    if codes == [0, 2]:
        assert any("another run is using" in error for error in errors)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "ok"


def test_a_progress_line_shows_that_time_passes(monkeypatch, capsys):
    monkeypatch.setattr(shown, "PLAIN_SECONDS", -1.0)
    stop = ShutdownSignal()
    with shown.ProgressBar("work", 8, stop=stop) as progression:
        stop.check()
        assert capsys.readouterr().err == "work: 0/8 images  0 s so far\n"
        progression.advance(2)
        assert capsys.readouterr().err == "work: 2/8 images  0 s left\n"
        monkeypatch.setattr(shown, "PLAIN_SECONDS", 60.0)
        stop.check()
        progression.advance(2)
        assert capsys.readouterr().err == ""
    assert stop.on_check is None
    stop.signum = 15
    with shown.ProgressBar("work", 8, stop=stop), pytest.raises(Interrupted):
        stop.check()


@pytest.mark.parametrize(
    ("seconds", "lines"), [(9.0, ""), (30.4, "about 30 s\n"), (89.0, "about 89 s\n"), (150.0, "about 2 min\n")]
)
def test_long_work_is_announced(seconds, lines, capsys):
    with shown.ProgressBar("log-likelihood of test, K=5000", 10_000) as progression:
        progression.forecast(seconds)
    assert capsys.readouterr().err == (lines and f"log-likelihood of test, K=5000: 10000 images, {lines}")
