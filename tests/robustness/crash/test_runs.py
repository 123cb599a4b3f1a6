"""Runs whose directory, data, disk, clock or reader disappears, and runs interrupted outside training."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runs.commands import load
from unit.training.test_training import assert_same_run, run, signal_at

from vaerun.errors import InputError, Interrupted, RunError
from vaerun.evaluation.likelihood import importance
from vaerun.objectives import Variational
from vaerun.run import result as record

pytestmark = pytest.mark.usefixtures("single_precision")


def test_a_run_whose_clock_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole")
    clock = time.time
    with monkeypatch.context() as patch:
        signal_at(patch, 10)
        with pytest.raises(Interrupted):
            run(tmp_path / "run")
    monkeypatch.setattr(time, "time", lambda: clock() - 1e6)
    run(tmp_path / "run")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_two_names_for_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started from another run's checkpoint and killed between two renames: previous.pt also belongs to this run."""
    run(tmp_path / "first", "trainer.max_steps=10")
    named = f"trainer.resume={tmp_path / 'first'}"
    whole = run(tmp_path / "whole", named)
    with monkeypatch.context() as patch:
        signal_at(patch, 14)
        with pytest.raises(Interrupted):
            run(tmp_path / "second", named, "trainer.checkpoint_seconds=0")
    (tmp_path / "second" / "checkpoints" / "last.pt").unlink()  # where there are no links
    (tmp_path / "first").rename(tmp_path / "gone")
    assert run(tmp_path / "second", named)["metrics"] == whole["metrics"]


def test_the_folder_goes_while_the_run_is_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Variational.after_step

    def after_step(self: Variational, step: int) -> None:
        original(self, step)
        if step == 7:
            shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr(Variational, "after_step", after_step)
    with pytest.raises(RunError, match=r"cannot (create|write).*run.*No such file or directory"):
        run(tmp_path / "run", "trainer.checkpoint_seconds=0")
    assert not (tmp_path / "run").exists()


def test_stopped_while_its_beginning_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, sent = record.write_result, ["SIGTERM"]

    def signalled(folder: Path, content: dict[str, Any]) -> None:
        if sent:
            signal.raise_signal(getattr(signal, sent.pop()))
        write(folder, content)

    monkeypatch.setattr(record, "write_result", signalled)
    with pytest.raises(Interrupted):
        run(tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["status"], load(tmp_path)["progress"]["step"]) == ("interrupted", 1)


@pytest.mark.parametrize("where", ["evaluation", "second SIGINT"])
def test_stopped_in_the_evaluation(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = importance.importance_statistics

    def signalled(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        if where == "evaluation":
            return compute(*arguments, **options)  # which looks whether one has come
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one ends it at once")

    expected = run(tmp_path / "whole")["metrics"]
    with monkeypatch.context() as patch:
        patch.setattr(importance, "importance_statistics", signalled)
        with pytest.raises(Interrupted) as stopped:
            run(tmp_path / "run")
    assert stopped.value.exit_code == 130
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "interrupted"
    assert run(tmp_path / "run")["metrics"] == expected


def test_vanished_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAERUN_CACHE", str(tmp_path / "cache"))
    random = np.random.RandomState(0)
    np.savez(tmp_path / "own.npz", train_images=random.randint(0, 256, (300, 1, 4, 4)).astype(np.uint8))
    words = ["data=npz", f"data.path={tmp_path / 'own.npz'}", "data.validation=20"]
    expected = run(tmp_path / "whole", *words)["metrics"]
    with monkeypatch.context() as patch:
        signal_at(patch, 10)
        with pytest.raises(Interrupted):
            run(tmp_path / "run", *words)
    (tmp_path / "own.npz").rename(tmp_path / "gone.npz")
    with pytest.raises(InputError, match=r"own\.npz: no such file"):
        run(tmp_path / "run", *words)
    (tmp_path / "gone.npz").rename(tmp_path / "own.npz")
    assert run(tmp_path / "run", *words)["metrics"] == expected


def test_a_reader_that_leaves_early_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `vaerun | head -1`: the run has finished, and reports it."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        run(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "ok"


def test_no_room_for_the_folder_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = os.mkdir

    def full(path: Any, *rest: Any) -> None:
        if str(path).endswith(".hydra"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        make(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", full)
        with pytest.raises(RunError, match=r"cannot create .*\.hydra: No space left on device"):
            run(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "failed"
    assert run(tmp_path)["status"] == "ok"
