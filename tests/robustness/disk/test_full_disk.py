"""Full and read-only disks: one line, nothing lost, and re-running the command resumes once there is space.

robustness/crash/test_killed.py covers every place that writes; here the disk is a real one.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runs.commands import FAST_AMIS, assert_same_bits, assert_same_scalars, lasting, records, tensorboard

from vaerun.cli import data

pytestmark = pytest.mark.usefixtures("command_environment")
# A checkpoint is 0.6 MB, and there are three of them.
WORDS = """model=vae model.encoder.hidden=[256] model.decoder.hidden=[256] model.latent_dim=4 data.train_images=250
trainer.device=cpu trainer.batch_size=64 trainer.max_steps=12 trainer.log_every=3 trainer.checkpoint_seconds=0
evaluation.images=20 evaluation.samples=20 evaluation.pictures=0""".split()  # noqa: SIM905
WORDS += FAST_AMIS


class Disk:
    """An in-memory file system of a given size."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def options(self, options: str, again: bool = True) -> None:
        remount = "remount," if again else ""
        call = ["mount", "-t", "tmpfs", "-o", f"{remount}{options}", "tmpfs", str(self.place)]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk")
    made.place.mkdir()
    try:
        made.options("size=100k", again=False)
    except FileNotFoundError:
        pytest.skip("file systems cannot be mounted here: there is no command mount")
    yield made
    subprocess.run(["umount", str(made.place)], check=True)


@pytest.fixture
def reference(here: Callable[..., tuple[int, str, str]], tmp_path: Path) -> Path:
    assert here(*WORDS, f"output_dir={tmp_path / 'reference'}")[0] == 0
    return tmp_path / "reference"


def one_line(err: str) -> str:
    (line,) = (line for line in err.splitlines() if not line.startswith(("epoch ", "vaerun: data: ")))
    return line


@pytest.mark.parametrize("size", ["40k", "1500k"])
def test_a_run_on_a_full_disk(
    size: str, disk: Disk, here: Callable[..., tuple[int, str, str]], reference: Path
) -> None:
    folder = disk.place / "run"
    disk.options(f"size={size}")
    code, out, err = here(*WORDS, f"output_dir={folder}")
    assert (code, out) == (1, ""), err
    line = one_line(err)
    assert line.startswith("vaerun: error: cannot write")
    assert "No space left on device" in line
    assert list(folder.rglob("*.tmp")) == []
    disk.options("size=64m")
    assert here(*WORDS, f"output_dir={folder}")[0] == 0
    for name in ("last", "best"):
        assert_same_bits(lasting(folder, name), lasting(reference, name))
    assert (folder / "metrics.jsonl").read_text() == (reference / "metrics.jsonl").read_text()
    assert_same_scalars(tensorboard(folder), records(folder))


def test_a_read_only_disk(
    disk: Disk, here: Callable[..., tuple[int, str, str]], reference: Path, evaluate: Any
) -> None:
    disk.options("size=64m")
    assert here(*WORDS, f"output_dir={disk.place / 'run'}")[0] == 0
    disk.options("ro")
    code, out, err = here(*WORDS, f"output_dir={disk.place / 'run'}")
    assert (code, err) == (0, "")  # shown, as before
    code, out, err = here(*WORDS, f"output_dir={disk.place / 'other'}")
    assert (code, out) == (2, "")
    assert "Read-only file system" in one_line(err)
    code, out, err = evaluate(f"run={disk.place / 'run'}", "evaluation.samples=10")
    assert (code, out) == (2, "")
    assert "Read-only file system" in one_line(err)


def test_prepared_data_on_a_full_disk(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.RandomState(0).randint(0, 256, (1000, 1, 16, 16)).astype(np.uint8)
    np.savez(tmp_path / "mnist.npz", train_images=images, test_images=images[:10])
    monkeypatch.setenv("VAERUN_CACHE", str(disk.place / "cache"))
    assert data.main(["mnist", "--root", str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "No space left on device" in line
    assert "VAERUN_CACHE" in line
    assert [p for p in (disk.place / "cache").rglob("*") if p.is_file() and p.suffix != ".lock"] == []
    with monkeypatch.context() as patch:
        patch.setenv("VAERUN_CACHE", str(tmp_path / "cache"))
        assert data.main(["mnist", "--root", str(tmp_path), "--output", str(disk.place)]) == 2
        assert "No space left on device" in capsys.readouterr().err
        assert list(disk.place.glob("*.npz")) + list(disk.place.glob(".*.tmp")) == []
    disk.options("size=4m")
    assert data.main(["mnist", "--root", str(tmp_path)]) == 0
