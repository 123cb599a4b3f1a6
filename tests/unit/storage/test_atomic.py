"""Atomic writes, checkpoint rotation and truncation of logs; leftovers of killed processes are skipped and removed."""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs.commands import load, records, tensorboard

from vaerun.errors import RunError
from vaerun.storage import atomic
from vaerun.storage.atomic import remove_temporaries, write_atomically
from vaerun.storage.checkpoint import CheckpointManager
from vaerun.storage.run_dir import lock_run_dir
from vaerun.tracking import tensorboard as events
from vaerun.tracking.logger import END, RunLogger, RunLogHandler

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
        write_atomically(path, b"second", backup=old)
        assert (path.read_bytes(), old.read_bytes()) == (b"second", b"first")
        return
    with pytest.raises(RunError, match=r"write .*file: No space left on device; its previous content is intact"):
        write_atomically(path, b"second")
    assert path.read_bytes() == (b"second" if place == "os.open" else b"first")  # the folder's entry, after the rename
    assert names(tmp_path) == ["file"]


def test_killed_between_the_two_renames(tmp_path: Path) -> None:
    """The two names are then links to one file, and renaming one to the other does nothing."""
    path, old = tmp_path / "file", tmp_path / "old"
    write_atomically(path, b"first")
    os.link(path, old)
    write_atomically(path, b"second", backup=old)
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
    ago = time.time() - atomic.STALE_SECONDS - 1
    os.utime(tmp_path / ".job.json.81.tmp", (ago, ago))  # the other may be about to be put in its place
    with lock_run_dir(tmp_path):
        remaining = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert remaining == {*mine, ".job.json.80.tmp", ".lock"}


def test_without_a_lock_only_old_leftovers_are_removed(tmp_path: Path) -> None:
    for name, age in ((".t.md.1.tmp", 0.5), (".t.md.2.tmp", 1.5), (".other.3.tmp", 1.5)):
        (tmp_path / name).touch()
        then = time.time() - age * atomic.STALE_SECONDS
        os.utime(tmp_path / name, (then, then))
    write_atomically(tmp_path / "t.md", b"")
    assert names(tmp_path) == [".other.3.tmp", ".t.md.1.tmp", "t.md"]


def test_links_are_not_followed_when_clearing(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".a.1.tmp").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "figures").symlink_to(tmp_path / "elsewhere")
    remove_temporaries(tmp_path / "run")
    assert names(tmp_path / "elsewhere") == [".a.1.tmp"]


# -- checkpoints ------------------------------------------------------------------------------------------------------


def state(step: int) -> dict[str, Any]:
    return {"x": torch.full((100,), float(step)), "step": step}


def steps(store: CheckpointManager) -> dict[str, int]:
    return {name: load(store.folder.parent, name)["step"] for name in ("last", "previous")}


def test_a_damaged_checkpoint_does_not_push_out_the_good_one(tmp_path: Path) -> None:
    """Between the fall-back and the next save there is still a checkpoint to resume from."""
    warnings: list[str] = []
    first = CheckpointManager(tmp_path / "checkpoints", "f", warnings.append)
    for step in (1, 2):
        first.save_last(state(step))
    assert steps(first) == {"last": 2, "previous": 1}
    last = tmp_path / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-50])
    for looked in (True, False):  # one that writes without having read finds out by itself
        again = CheckpointManager(tmp_path / "checkpoints", "f", warnings.append)
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
    store = CheckpointManager(tmp_path / "checkpoints", "f", print)
    for step in (1, 2):
        store.save_last(state(step))
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(RunError, match=r"last\.pt: Input/output error"):
        store.save_last(state(3))
    assert steps(store) == {"last": 2, "previous": 1}
    assert names(store.folder) == ["last.pt", "previous.pt"]


def test_a_folder_that_has_gone_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointManager(tmp_path / "run" / "checkpoints", "f", print)
    with pytest.raises(RunError, match=r"cannot create .*checkpoints: No such file or directory"):
        store.save_last(state(1))


# -- records ----------------------------------------------------------------------------------------------------------


def log(folder: Path, position: dict[str, Any] | None, start_step: int = 0) -> RunLogger:
    return RunLogger(folder, position=position, start_step=start_step, total_steps=9, images_per_step=1, show=False)


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(e.step, e.value) for e in tensorboard(folder).Scalars(tag)]


def test_what_a_killed_process_recorded_too_much_is_cut_off(tmp_path: Path) -> None:
    """Also records of the checkpoint's own step, and event files that it does not know."""
    first = log(tmp_path, None)
    for step in (1, 2):
        first.log_scalars(step, 0.0, {"a": float(step)})
    position = first.position()
    first.log_scalars(2, 0.0, {"b": 5.0})  # such as a validation
    first.log_scalars(3, 0.0, {"a": 3.0})
    first.close()
    second = log(tmp_path, position, 2)
    second.log_scalars(3, 0.0, {"a": 30.0})
    second.close()
    third = log(tmp_path, position, 2)
    third.log_scalars(3, 0.0, {"a": 31.0})
    third.close()
    assert scalars(tmp_path, "a") == [(1, 1.0), (2, 2.0), (3, 31.0)]
    assert tensorboard(tmp_path).Tags()["scalars"] == ["a"]
    assert [line["a"] for line in records(tmp_path)] == [1.0, 2.0, 31.0]


def test_half_a_line_is_not_gone_on_from(tmp_path: Path) -> None:
    first = log(tmp_path, None)
    first.log_scalars(1, 0.0, {"a": 1.0})
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "a"')
    again = log(tmp_path, END, 1)
    again.log_scalars(2, 0.0, {"a": 2.0})
    again.close()
    assert [line["a"] for line in records(tmp_path)] == [1.0, 2.0]
    assert scalars(tmp_path, "a") == [(1, 1.0), (2, 2.0)]


def test_a_clock_that_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads event files in the order of their names, which hold the creation time."""
    clock, position = time.time, None
    for i in range(3):
        monkeypatch.setattr(time, "time", lambda i=i: clock() - i * 1e6)
        one = log(tmp_path, position, i)
        one.log_scalars(i + 1, 0.0, {"a": float(i)})
        position = one.position()
        one.close()
    made = sorted(events.file_sizes(tmp_path))
    assert len({name.split(".")[3] for name in made}) == 3
    assert scalars(tmp_path, "a") == [(1, 0.0), (2, 1.0), (3, 2.0)]


@pytest.mark.parametrize("when", ["opening", "writing"])
def test_run_log_that_cannot_be_written(when: str, tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    if when == "opening":
        path.mkdir()
    handler = RunLogHandler(path)
    if when == "writing":
        handler.stream = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(RunError, match=r"cannot write .*run\.log: (Is a directory|No space left on device)"):
        handler.emit(logging.LogRecord("", logging.INFO, "", 0, "line", (), None))
    handler.close()
