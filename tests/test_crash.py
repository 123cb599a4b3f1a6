"""What is written is the old or the new, whole; what a killed process left is passed over and removed."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import load, records, tensorboard
from test_training import assert_same_run, run, signal_at

from vaerun import events, files
from vaerun.errors import InputError, Interrupted, RunError
from vaerun.evaluation import importance
from vaerun.files import clear_temporaries, write_atomically
from vaerun.objectives import Variational
from vaerun.run import record
from vaerun.run.folder import claim
from vaerun.training.checkpoint import Store
from vaerun.training.log import END, Log, RunLog

pytestmark = pytest.mark.usefixtures("single_precision")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["os.fsync", "os.replace", "os.open", "os.link"])
def test_a_write_that_fails_changes_nothing(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path, old = tmp_path / "file", tmp_path / "old"
    write_atomically(path, b"first")
    monkeypatch.setattr(place, fail)
    if place == "os.link":  # a file system without links: a rename does it
        write_atomically(path, b"second", keep=old)
        assert (path.read_bytes(), old.read_bytes()) == (b"second", b"first")
        return
    with pytest.raises(RunError, match=r"write .*file: No space left on device; what was there before is intact"):
        write_atomically(path, b"second")
    assert path.read_bytes() == (b"second" if place == "os.open" else b"first")  # the folder's entry, after the rename
    assert names(tmp_path) == ["file"]


def test_killed_between_the_two_renames(tmp_path: Path) -> None:
    """The old name and the new one are then links to one file, and renaming one to the other does nothing."""
    path, old = tmp_path / "file", tmp_path / "old"
    write_atomically(path, b"first")
    os.link(path, old)
    write_atomically(path, b"second", keep=old)
    assert (path.read_bytes(), old.read_bytes()) == (b"second", b"first")
    assert names(tmp_path) == ["file", "old"]


def test_the_folders_entry_is_flushed_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flush(fd: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), replace(*names)))
    write_atomically(tmp_path / "file", b"content")
    assert done == ["file", "rename", "folder"]


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    mine = ["figures/.a.png.tmp", ".notes.tmp", "x.7.tmp", ".result.json", "result.json"]
    left = [".result.json.77.tmp", "figures/.a.png.78.tmp", ".previous.pt.79.tmp"]
    for name in [*mine, *left, ".job.json.80.tmp", ".job.json.81.tmp"]:
        (tmp_path / name).touch()
    ago = time.time() - files.STALE_SECONDS - 1
    os.utime(tmp_path / ".job.json.81.tmp", (ago, ago))  # the other may be about to be put in its place
    with claim(tmp_path):
        found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {*mine, ".job.json.80.tmp", ".lock"}


def test_without_a_lock_only_old_leftovers_are_removed(tmp_path: Path) -> None:
    for name, age in ((".t.md.1.tmp", 0.5), (".t.md.2.tmp", 1.5), (".other.3.tmp", 1.5)):
        (tmp_path / name).touch()
        then = time.time() - age * files.STALE_SECONDS
        os.utime(tmp_path / name, (then, then))
    write_atomically(tmp_path / "t.md", b"")
    assert names(tmp_path) == [".other.3.tmp", ".t.md.1.tmp", "t.md"]


def test_links_are_not_followed_when_clearing(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".a.1.tmp").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "figures").symlink_to(tmp_path / "elsewhere")
    clear_temporaries(tmp_path / "run")
    assert names(tmp_path / "elsewhere") == [".a.1.tmp"]


# -- checkpoints ------------------------------------------------------------------------------------------------------


def state(step: int) -> dict[str, Any]:
    return {"x": torch.full((100,), float(step)), "step": step}


def steps(store: Store) -> dict[str, int]:
    return {name: load(store.folder.parent, name)["step"] for name in ("last", "previous")}


def test_a_damaged_checkpoint_does_not_push_out_the_good_one(tmp_path: Path) -> None:
    """Between the fall-back and the next save there is still one to go on from."""
    warnings: list[str] = []
    first = Store(tmp_path / "checkpoints", "f", warnings.append)
    for step in (1, 2):
        first.save_last(state(step))
    assert steps(first) == {"last": 2, "previous": 1}
    last = tmp_path / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-50])
    for looked in (True, False):  # one that writes without having read finds out by itself
        again = Store(tmp_path / "checkpoints", "f", warnings.append)
        if looked:
            assert again.load_last("cpu")["step"] == 1  # type: ignore[index]
            assert len(warnings) == 1
        again.save_last(state(2))
        assert steps(again) == {"last": 2, "previous": 1}
        if looked:
            last.write_bytes(last.read_bytes()[:-50])
    again.save_last(state(3))
    assert steps(again) == {"last": 3, "previous": 2}


def test_a_save_that_fails_keeps_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "checkpoints", "f", print)
    for step in (1, 2):
        store.save_last(state(step))
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(RunError, match=r"last\.pt: Input/output error"):
        store.save_last(state(3))
    assert steps(store) == {"last": 2, "previous": 1}
    assert names(store.folder) == ["last.pt", "previous.pt"]


def test_a_folder_that_has_gone_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "run" / "checkpoints", "f", print)
    with pytest.raises(RunError, match=r"cannot make .*checkpoints: No such file or directory"):
        store.save_last(state(1))


# -- records ----------------------------------------------------------------------------------------------------------


def log(folder: Path, position: dict[str, Any] | None, start_step: int = 0) -> Log:
    return Log(folder, position=position, start_step=start_step, total_steps=9, images_per_step=1, show=False)


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(e.step, e.value) for e in tensorboard(folder).Scalars(tag)]


def test_what_a_killed_process_recorded_too_much_is_cut_off(tmp_path: Path) -> None:
    """Also of the checkpoint's own step, and of events files that it does not know."""
    first = log(tmp_path, None)
    for step in (1, 2):
        first.record(step, 0.0, {"a": float(step)})
    position = first.position()
    first.record(2, 0.0, {"b": 5.0})  # such as a validation
    first.record(3, 0.0, {"a": 3.0})
    first.close()
    second = log(tmp_path, position, 2)
    second.record(3, 0.0, {"a": 30.0})
    second.close()
    third = log(tmp_path, position, 2)
    third.record(3, 0.0, {"a": 31.0})
    third.close()
    assert scalars(tmp_path, "a") == [(1, 1.0), (2, 2.0), (3, 31.0)]
    assert tensorboard(tmp_path).Tags()["scalars"] == ["a"]
    assert [line["a"] for line in records(tmp_path)] == [1.0, 2.0, 31.0]


def test_half_a_line_is_not_gone_on_from(tmp_path: Path) -> None:
    first = log(tmp_path, None)
    first.record(1, 0.0, {"a": 1.0})
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "a"')
    again = log(tmp_path, END, 1)
    again.record(2, 0.0, {"a": 2.0})
    again.close()
    assert [line["a"] for line in records(tmp_path)] == [1.0, 2.0]
    assert scalars(tmp_path, "a") == [(1, 1.0), (2, 2.0)]


def test_a_clock_that_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers of TensorBoard's files take them in the order of their names, which say when they were made."""
    clock, position = time.time, None
    for i in range(3):
        monkeypatch.setattr(time, "time", lambda i=i: clock() - i * 1e6)
        one = log(tmp_path, position, i)
        one.record(i + 1, 0.0, {"a": float(i)})
        position = one.position()
        one.close()
    made = sorted(events.sizes(tmp_path))
    assert len({name.split(".")[3] for name in made}) == 3
    assert scalars(tmp_path, "a") == [(1, 0.0), (2, 1.0), (3, 2.0)]


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


@pytest.mark.parametrize("when", ["opening", "writing"])
def test_run_log_that_cannot_be_written(when: str, tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    if when == "opening":
        path.mkdir()
    handler = RunLog(path)
    if when == "writing":
        handler.stream = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(RunError, match=r"cannot write .*run\.log: (Is a directory|No space left on device)"):
        handler.emit(logging.LogRecord("", logging.INFO, "", 0, "line", (), None))
    handler.close()


# -- runs -------------------------------------------------------------------------------------------------------------


def test_two_names_for_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun from another's checkpoint and killed between two renames: previous.pt is this run's beginning too."""
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
    with pytest.raises(RunError, match=r"cannot (make|write).*run.*No such file or directory"):
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
    found = json.loads((tmp_path / "result.json").read_text())
    assert (found["status"], load(tmp_path)["progress"]["step"]) == ("interrupted", 1)


@pytest.mark.parametrize("where", ["evaluation", "second SIGINT"])
def test_stopped_in_the_evaluation(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weigh = importance.weigh

    def signalled(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        if where == "evaluation":
            return weigh(*arguments)  # which looks whether one has come
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one ends it at once")

    expected = run(tmp_path / "whole")["metrics"]
    with monkeypatch.context() as patch:
        patch.setattr(importance, "weigh", signalled)
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
    """Such as in `vaerun | head -1`: the run has finished, and says so."""
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
        with pytest.raises(RunError, match=r"cannot make .*\.hydra: No space left on device"):
            run(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "failed"
    assert run(tmp_path)["status"] == "ok"
