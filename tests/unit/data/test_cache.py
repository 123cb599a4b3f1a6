"""The prepared cache, the user's own files, checks of arrays and the command line; nothing here needs a server."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaerun.cli.data import main
from vaerun.data import sources
from vaerun.data.arrays import Arrays, check_arrays, digest, split_off_test
from vaerun.data.cache import SCRATCH_SECONDS, load_arrays, load_built_in
from vaerun.errors import InputError

REAL = os.environ.get("VAERUN_DATA", "")  # read before the fixture hides it
IMAGES = np.random.RandomState(0).randint(0, 256, (20, 3, 4, 5)).astype(np.uint8)
LABELS = np.arange(20)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VAERUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VAERUN_DATA", raising=False)
    return tmp_path / "cache"


def refused(call: Callable[[], Any], *words: str) -> None:
    """`call` raises an InputError whose message is one line with these words."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def left_in(cache: Path) -> list[str]:
    return sorted(file.name for file in (cache / "prepared").glob("*") if file.suffix != ".lock")


class Counting:
    """A source that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, scratch: Path, **options: Any) -> Arrays:
        assert list(scratch.iterdir()) == []
        self.calls += 1
        return Arrays(IMAGES, LABELS, IMAGES[:2], None, "official")


# --- the cache ---


def test_second_call_maps_the_copy() -> None:
    source = Counting()
    first, second = load_arrays("own", source), load_arrays("own", source)
    assert source.calls == 1
    assert isinstance(second.train_images, np.memmap)
    assert not second.train_images.flags.writeable
    np.testing.assert_array_equal(second.train_images, IMAGES)
    assert second.test_labels is None
    assert first.sha256 == second.sha256 == digest(second)
    load_arrays("own", source, options={"image_size": 8})
    assert source.calls == 2


@pytest.mark.parametrize("damage", ["truncate", "remove", "meta"])
def test_damaged_copy_is_made_again(damage: str, cache: Path) -> None:
    source = Counting()
    load_arrays("own", source)
    (entry,) = (cache / "prepared").glob("own-*")
    file = entry / ("meta.json" if damage == "meta" else "train_images.npy")
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-100])
    np.testing.assert_array_equal(load_arrays("own", source).train_images, IMAGES)
    assert source.calls == 2
    assert left_in(cache) == [entry.name]


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("a bug"), KeyboardInterrupt()])
def test_failing_source_leaves_nothing(error: BaseException, cache: Path) -> None:
    def source(scratch: Path) -> Arrays:
        (scratch / "raw").write_text("half")
        raise error

    with pytest.raises(InputError if isinstance(error, OSError) else type(error)):
        load_arrays("own", source)
    assert left_in(cache) == []


def test_full_disk_and_unwritable_cache(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(scratch: Path) -> Arrays:
        raise OSError(28, "No space left on device")

    refused(lambda: load_arrays("own", full), str(cache), "No space left", "VAERUN_CACHE")
    (tmp_path / "file").touch()
    monkeypatch.setenv("VAERUN_CACHE", str(tmp_path / "file" / "cache"))
    refused(lambda: load_arrays("own", Counting()), str(tmp_path / "file" / "cache"), "VAERUN_CACHE")


def test_scratch_folders_of_killed_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name, age in (("vaerun-scratch-old", 1.5), ("vaerun-scratch-new", 0.5), ("mine", 1.5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "raw").touch()
        then = time.time() - age * SCRATCH_SECONDS
        os.utime(tmp_path / name, (then, then))
    load_arrays("own", Counting(), cached=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "vaerun-scratch-new"]

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not there"))
    load_built_in("digits")  # which needs no folder at all


def test_roots_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(lambda: load_built_in("digits", root=str(tmp_path / "no")), "data.root", str(tmp_path / "no"))
    monkeypatch.setenv("VAERUN_DATA", str(tmp_path / "no"))
    refused(lambda: load_built_in("digits"), "VAERUN_DATA")
    refused(lambda: load_built_in("fashion-mnst"), "did you mean fashion_mnist?")
    np.savez_compressed(tmp_path / "mnist.npz", train_images=IMAGES, test_images=IMAGES)
    np.testing.assert_array_equal(load_built_in("mnist", root=str(tmp_path)).train_images, IMAGES)
    (tmp_path / "svhn.npz").write_bytes((tmp_path / "mnist.npz").read_bytes()[:-300])
    refused(lambda: load_built_in("svhn", root=str(tmp_path)), str(tmp_path / "svhn.npz"), "not a readable .npz")


def test_digits() -> None:
    arrays = load_built_in("digits")
    assert arrays.test_images is not None
    assert (arrays.train_images.shape, arrays.test_images.shape) == ((1438, 1, 8, 8), (359, 1, 8, 8))
    assert arrays.train_images.max() == 255
    assert arrays.split == "vaerun: 20% test by seed 0"
    assert arrays.sha256 == load_built_in("digits").sha256


def test_split_off_test_is_disjoint_and_whole() -> None:
    images = np.arange(30, dtype=np.uint8).reshape(30, 1, 1, 1)
    arrays = split_off_test(Arrays(images, np.arange(30), None, None, ""), fraction=0.2, seed=1)
    assert arrays.train_labels is not None
    assert arrays.test_labels is not None
    assert len(arrays.test_labels) == 6
    assert sorted([*arrays.train_labels, *arrays.test_labels]) == list(range(30))
    np.testing.assert_array_equal(arrays.train_images.ravel(), arrays.train_labels)
    refused(lambda: split_off_test(Arrays(IMAGES[:1], None, None, None, "")), "1 image")


@pytest.mark.skipif(not Path(REAL, "mnist.npz").is_file(), reason="needs VAERUN_DATA with mnist.npz")
def test_real_mnist() -> None:
    images = load_built_in("mnist", root=REAL).train_images
    expected = "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757"
    assert hashlib.sha256(images.tobytes()).hexdigest() == expected


# --- arrays and .npz files ---

WITH_NAN = np.where(IMAGES.max() == IMAGES, np.nan, IMAGES)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"train_images": IMAGES / 127.5 - 1}, ["the pixels are in -1..1", "(images + 1) / 2"]),
        ({"train_images": WITH_NAN}, ["NaN"]),
        ({"train_images": IMAGES[0, 0]}, ["[4, 5]", "[N, H, W]"]),
        ({"train_images": IMAGES[:0]}, ["which is empty"]),
        ({"train_images": IMAGES.transpose(0, 2, 3, 1)}, ["[N, H, W, C]", "images.transpose(0, 3, 1, 2)"]),
        ({"train_images": IMAGES, "test_images": IMAGES[..., 1:]}, ["3x4x4", "3x4x5"]),
        ({"train_images": IMAGES, "train_labels": LABELS / 2}, ["train_labels", "label 1 is 0.5"]),
        ({"train_images": IMAGES, "train_labels": LABELS[1:]}, ["[19]", "N = 20"]),
        ({"train_images": IMAGES, "test_labels": LABELS}, ["no test_images"]),
        ({"a": IMAGES, "y": LABELS}, ["a, y", "required: train_images"]),
        ({"train_images": np.array([None, 1])}, ["train_images: Object arrays"]),
    ],
)
def test_npz_that_cannot_be_used(arrays: dict[str, np.ndarray], words: list[str], tmp_path: Path, cache: Path) -> None:
    np.savez(file := tmp_path / "own.npz", **arrays)  # type: ignore[arg-type]
    refused(lambda: load_arrays("npz", sources.npz, path=str(file)), str(file), *words)
    assert left_in(cache) == []


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    for name, word in (
        ("none.npz", "no such file"),
        ("text.npz", "not an npz archive"),
        ("text.npz", "not a readable"),
    ):
        refused(lambda name=name: load_arrays("npz", sources.npz, path=str(tmp_path / name)), name, word)  # type: ignore[misc]
    refused(lambda: load_arrays("npz", sources.npz), "data.path")


def test_npz_of_a_user(tmp_path: Path) -> None:
    np.savez(file := tmp_path / "own.npz", train_images=IMAGES[:, 0], train_labels=LABELS.astype(np.uint8))
    arrays = load_arrays("npz", sources.npz, path=str(file))
    assert arrays.test_images is not None
    assert arrays.train_labels is not None
    assert (arrays.train_images.shape, arrays.test_images.shape) == ((18, 1, 4, 5), (2, 1, 4, 5))
    np.testing.assert_array_equal(arrays.train_images[:, 0], IMAGES[arrays.train_labels, 0])
    assert arrays.split == "vaerun: 10% test by seed 0"
    np.savez(file, train_images=IMAGES, test_images=IMAGES[:3])  # a changed file is read again
    assert len(load_arrays("npz", sources.npz, path=str(file)).train_images) == 20
    assert check_arrays(arrays, "again").train_labels is not None


# --- the command line ---


def test_command_packs_a_prepared_file(tmp_path: Path, capsys: Any) -> None:
    assert main(["digits", "--output", str(tmp_path / "out")]) == 0
    line = capsys.readouterr().out
    arrays = load_built_in("digits")
    for word in ("digits: 1438 train / 359 test, 1x8x8", arrays.split, arrays.sha256[:12], "digits.npz"):
        assert word in line
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["digits.npz"]
    packed = load_built_in("digits", root=str(tmp_path / "out"))
    assert (packed.sha256, packed.split) == (arrays.sha256, arrays.split)


def test_command_errors(capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for arguments in (["digits", "mnits"], ["digits", "--output", str(tmp_path / "file")]):
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert (captured.out, captured.err.count("\n")) == ("", 1)
        assert captured.err.startswith("vaerun-data: error: ")
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(sources.BUILT_IN)

    def stopped(scratch: Path) -> Arrays:
        raise KeyboardInterrupt

    monkeypatch.setitem(sources.BUILT_IN, "svhn", stopped)
    assert main(["svhn"]) == 130


def test_command_help_does_not_import_numpy() -> None:
    code = "import sys, vaerun.cli.data; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
