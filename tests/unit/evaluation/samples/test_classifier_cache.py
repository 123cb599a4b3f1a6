"""The classifier's file in the cache: when it is read, when it is made, and what interrupts that."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from support.models.classifying import files, make, refused, scaled, stripes

from vaerun.data.arrays import Arrays
from vaerun.errors import InputError, Interrupted, RunError
from vaerun.evaluation.samples import classifier as module
from vaerun.signals import ShutdownSignal
from vaerun.storage import checkpoint


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.RECIPE, "least_steps", 5)
    monkeypatch.setitem(module.RECIPE, "epochs", 1)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was trained, as it happens."""
    result: list[str] = []
    train = module._train

    def counted(arrays: Arrays, name: str, *rest: Any) -> dict[str, Any]:
        result.append(name)
        return train(arrays, name, *rest)

    monkeypatch.setattr(module, "_train", counted)
    return result


def test_the_second_call_reads(tmp_path: Path, trainings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arrays = stripes()
    first, second = make(tmp_path / "new" / "folder", arrays), make(tmp_path / "new" / "folder", arrays)
    assert trainings == ["own"]
    x = scaled(arrays.test_images)
    assert torch.equal(first.features(x), second.features(x))
    assert (first.name, first.accuracy, first.classes) == (second.name, second.accuracy, second.classes)
    assert re.fullmatch(r"vaerun-classifier-v1 of own \(sha256 [0-9a-f]{12}\)", first.name)
    (file,) = files(tmp_path / "new" / "folder")
    assert re.fullmatch(r"own-[0-9a-f]{16}\.pt", file)
    assert capsys.readouterr().err == ""


def test_another_architecture_recipe_or_data_is_another_file(
    tmp_path: Path, trainings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [make(tmp_path).name]
    names.append(make(tmp_path, stripes(seed=1)).name)
    for table, key, value in ((module.ARCHITECTURE, "channels", [32, 64, 96]), (module.RECIPE, "learning_rate", 1e-3)):
        monkeypatch.setitem(table, key, value)
        names.append(make(tmp_path).name)
    monkeypatch.setattr(module, "VERSION", 2)
    names.append(make(tmp_path).name)
    assert names[-1].startswith("vaerun-classifier-v2 of own")
    assert len(files(tmp_path)) == len(set(names)) == len(trainings) == 5


def test_the_key_is_of_the_arrays_where_they_carry_no_digest(tmp_path: Path, trainings: list[str]) -> None:
    for seed in (0, 1, 2, 0):
        make(tmp_path, dataclasses.replace(stripes(seed=seed), sha256=""))
    make(tmp_path)  # the digest of the same arrays
    assert len(trainings) == 3


@pytest.mark.parametrize("damage", ["cut", "no checkpoint", "other shapes", "lacking"])
def test_a_damaged_file_is_trained_anew(
    damage: str, tmp_path: Path, trainings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = make(tmp_path).name
    (file,) = tmp_path.glob("*.pt")
    whole = file.read_bytes()
    state = checkpoint.load_checkpoint(file)
    if damage == "cut":
        file.write_bytes(whole[:-100])
    elif damage == "no checkpoint":
        file.write_bytes(b"nothing")
    elif damage == "other shapes":
        checkpoint.save_checkpoint(
            file, state | {"weights": {key: value[:1] for key, value in state["weights"].items() if value.dim()}}
        )
    else:
        checkpoint.save_checkpoint(file, {"accuracy": 1.0})
    capsys.readouterr()
    assert make(tmp_path).name == name
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"vaerun: warning: {file} is damaged (")
    assert "\n" not in lines[0]
    assert len(trainings) == 2
    assert make(tmp_path).name == name  # and the new file is whole
    assert len(trainings) == 2


def test_an_interruption_leaves_where_it_was_and_no_lock(tmp_path: Path) -> None:
    looks = 0

    class Third(ShutdownSignal):
        def check(self) -> None:
            nonlocal looks
            super().check()
            looks += 1
            if looks == 3:
                self.signum = 15

    with pytest.raises(Interrupted) as caught:  # whose traceback keeps the lock's object alive
        make(tmp_path, stop=Third())
    assert [name.split(".", 1)[1] for name in files(tmp_path)] == ["unfinished.pt"]
    (lock,) = tmp_path.glob("*.lock")
    with FileLock(lock, timeout=0):
        pass
    del caught
    make(tmp_path)
    assert len(files(tmp_path)) == 1
    assert len(files(tmp_path)) == 1


def test_a_signal_during_the_writing_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, write = ShutdownSignal(), checkpoint.write_atomically

    def signalled(*arguments: Any) -> None:
        stop._handle(15, None)
        write(*arguments)

    monkeypatch.setattr(checkpoint, "write_atomically", signalled)
    make(tmp_path, stop=stop)
    assert len(files(tmp_path)) == 1
    assert stop.signum == 15


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    make(tmp_path)
    (file,) = tmp_path.glob("*.pt")
    file.unlink()
    (tmp_path / f".{file.name}.123.tmp").write_bytes(b"half")
    (tmp_path / ".other-0.pt.123.tmp").write_bytes(b"another's")
    make(tmp_path)
    assert files(tmp_path) == sorted([file.name, ".other-0.pt.123.tmp"])


def test_the_second_process_waits_and_reads(
    tmp_path: Path, trainings: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another process holds the lock, and writes the file before it lets go."""
    monkeypatch.setattr(module, "LOCK_POLL_SECONDS", 0.05)
    arrays = stripes()
    name = make(tmp_path, arrays).name
    (file,) = tmp_path.glob("*.pt")
    content = file.read_bytes()
    file.unlink()
    trainings.clear()
    other = FileLock(file.with_suffix(".lock"), thread_local=False)
    other.acquire()

    def finish() -> None:
        time.sleep(0.4)
        file.write_bytes(content)
        other.release()

    thread = threading.Thread(target=finish)
    thread.start()
    capsys.readouterr()
    try:
        assert make(tmp_path, arrays).name == name
    finally:
        thread.join()
    assert trainings == []
    assert capsys.readouterr().err == "vaerun: another process is training the classifier of own: waiting for it\n"


def test_a_signal_ends_the_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_POLL_SECONDS", 0.05)
    make(tmp_path)
    (file,) = tmp_path.glob("*.pt")
    file.unlink()
    stop = ShutdownSignal()
    with FileLock(file.with_suffix(".lock")):
        timer = threading.Timer(0.2, lambda: setattr(stop, "signum", 15))
        timer.start()
        with pytest.raises(Interrupted):
            make(tmp_path, stop=stop)
        timer.join()
    assert files(tmp_path) == []


def test_full_disk_and_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    refused(InputError, lambda: make(tmp_path / "file" / "classifiers"), str(tmp_path / "file"), "VAERUN_CACHE")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vaerun.storage.atomic.os.fsync", full)
    refused(RunError, lambda: make(tmp_path / "full"), "cannot write", "own-", "No space left")
    assert files(tmp_path / "full") == []


def test_a_read_only_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there needs no lock: a folder in which none can be made will do."""
    name = make(tmp_path).name
    for lock in tmp_path.glob("*.lock"):
        lock.unlink()

    def refuse(*anything: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert make(tmp_path).name == name
    refused(InputError, lambda: make(tmp_path, stripes(seed=1)), str(tmp_path), "Permission denied")
