"""npz files as others write them: names of arrays, what was read of them, and files larger than the memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaerun.data import sources
from vaerun.data.array_names import match_names
from vaerun.data.arrays import Arrays, check_arrays, digest, split_off_test
from vaerun.data.cache import load_arrays
from vaerun.errors import InputError

IMAGES = np.random.RandomState(0).randint(0, 256, (30, 1, 8, 8)).astype(np.uint8)
LABELS = np.arange(30) % 3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAERUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VAERUN_DATA", raising=False)


def read(path: Path, save: Any = np.savez, **arrays: Any) -> Arrays:
    save(path / "own.npz", **arrays)
    return load_arrays("npz", sources.npz, path=str(path / "own.npz"))


def refusal(path: Path, **arrays: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **arrays)
    message = str(caught.value)
    assert "own.npz" in message
    assert "\n" not in message
    return message


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "fields"),
    [
        ("train_images train_labels test_images test_labels", None),
        ("train_images train_labels val_images val_labels test_images test_labels", "validation val"),  # MedMNIST
        ("x_train y_train x_test y_test", "train_images x_train train_labels y_train test_images x_test"),  # Keras
        ("X y", "train_images X train_labels y"),
        ("images targets", "train_images images train_labels targets"),
        ("data target", "train_images data train_labels target"),
        ("trainX trainY testX testY", "train_images trainX train_labels trainY test_labels testY"),
        ("X_train Y_train X_valid Y_valid", "validation_images X_valid validation_labels Y_valid"),
        ("train test val", "train_images train test_images test validation_images val"),
        ("imgs", "train_images imgs"),
        ("arr_0", "train_images arr_0"),
    ],
)
def test_usual_names(names: str, fields: str | None) -> None:
    chosen, notes = match_names(names.split(), "file")
    assert set(chosen.values()) == set(names.split())
    words = (fields or "").replace("validation val", "validation_images val_images").split()
    for field, name in zip(words[::2], words[1::2], strict=True):
        assert chosen[field] == name
        assert f"{name} as {field}" in notes[0]
    assert bool(notes) == (fields is not None)


@pytest.mark.parametrize(
    "name", ["latents_values", "metadata", "split", "xs", "training_step", "class_names", "trainer"]
)
def test_other_names_are_nothing(name: str) -> None:
    assert match_names(["train_images", name], "file")[0] == {"train_images": "train_images"}


def test_a_name_of_ours_comes_before_others() -> None:
    chosen, notes = match_names(["images", "train_images", "y"], "file")
    assert chosen == {"train_images": "train_images", "train_labels": "y"}
    assert notes == ["took y as train_labels", "not used: images"]


def test_what_cannot_be_told_is_asked(tmp_path: Path) -> None:
    message = refusal(tmp_path, images=IMAGES, data=IMAGES, y=LABELS)
    assert "images and data could each be train_images: name the one to use train_images, or keep only that" in message
    assert len(read(tmp_path, images=IMAGES, y=LABELS).train_images) == 27
    assert len(read(tmp_path, train_images=IMAGES, data=IMAGES, y=LABELS).train_images) == 27
    assert "contains a, b; required: train_images" in refusal(tmp_path, a=IMAGES, b=LABELS)
    assert "contains test_images, test_labels; required: train_images" in refusal(
        tmp_path, test_images=IMAGES, test_labels=LABELS
    )


# -- what is read -----------------------------------------------------------------------------------------------------


def test_medmnist(tmp_path: Path) -> None:
    """[N, H, W, 3], labels [N, 1] of uint8, and a validation part."""
    colour = np.repeat(IMAGES, 3, 1).transpose(0, 2, 3, 1)
    column = LABELS[:, None].astype(np.uint8)
    parts = {"train": slice(0, 20), "val": slice(20, 25), "test": slice(25, 30)}
    named = {f"{part}_images": colour[rows] for part, rows in parts.items()}
    named |= {f"{part}_labels": column[rows] for part, rows in parts.items()}
    arrays = read(tmp_path, **named)
    for part, rows in zip(("train", "validation", "test"), parts.values(), strict=True):
        np.testing.assert_array_equal(getattr(arrays, f"{part}_images"), np.repeat(IMAGES[rows], 3, 1))
        np.testing.assert_array_equal(getattr(arrays, f"{part}_labels"), LABELS[rows])
    assert (arrays.class_names, arrays.split) == (("0", "1", "2"), "official")
    assert arrays.notes == (
        "took val_images as validation_images, val_labels as validation_labels",
        "train_images and test_images and validation_images read as [N, H, W, C]",
    )


def test_dsprites(tmp_path: Path) -> None:
    """Pixels of 0 and 1, no class labels, and an array of Python objects, which is not read."""
    images = (IMAGES[:, 0] > 127).astype(np.uint8)
    latents = np.zeros((30, 6))
    arrays = read(
        tmp_path,
        np.savez_compressed,
        metadata=np.array({"a": 1}),
        imgs=images,
        latents_classes=latents,
        latents_values=latents,
    )
    assert arrays.test_images is not None
    whole = np.concatenate([arrays.test_images, arrays.train_images])
    np.testing.assert_array_equal(whole[:, 0], 255 * images[np.random.RandomState(0).permutation(30)])
    np.testing.assert_array_equal(arrays.part_ids("test"), np.random.RandomState(0).permutation(30)[:3])
    assert arrays.train_labels is None
    assert arrays.notes[:2] == (
        "took imgs as train_images",
        "not used: metadata, latents_classes, latents_values",
    )
    assert "read as binary images" in arrays.notes[2]


def test_labels_of_one_part(tmp_path: Path) -> None:
    arrays = read(tmp_path, x_train=IMAGES, y_train=LABELS, x_test=IMAGES)
    assert arrays.unlabelled == "test_labels are missing, so the labels of the other parts are not used"
    assert arrays.unlabelled in arrays.notes
    again = load_arrays("npz", sources.npz, path=str(tmp_path / "own.npz"))  # from the cache
    assert (again.unlabelled, again.notes, again.warnings) == (arrays.unlabelled, arrays.notes, arrays.warnings)


def test_notes_and_warnings_come_once(tmp_path: Path) -> None:
    arrays = read(tmp_path, train_images=(IMAGES // 16).astype("f4"), train_labels=LABELS + 1)
    assert arrays.notes == ("float32 pixels taken as 0..255, exact", "labels 1..3 are classes 0..2")
    assert len(arrays.warnings) == 1


def test_what_was_read_before_has_the_same_digest(tmp_path: Path) -> None:
    """In place or not, and as without any of the forms: runs of such data go on."""
    arrays = read(tmp_path, train_images=IMAGES, train_labels=LABELS)
    plain = split_off_test(Arrays(IMAGES, LABELS.astype(np.int64), None, None, "official"))
    assert arrays.sha256 == digest(plain) == digest(check_arrays(plain, "file"))
    assert arrays.sha256 == "56ca98f173d10f99d4692f783a846248b6542cbf9ddb49ae9088ea3ebbde236d"


def test_splitting_in_place() -> None:
    for count in (2, 3, 30):
        images = IMAGES[:count].copy()
        arrays = Arrays(images, None, None, None, "")
        copied = split_off_test(arrays)
        in_place = split_off_test(dataclasses.replace(arrays, train_images=images), in_place=True)
        assert np.shares_memory(in_place.train_images, images)
        assert digest(in_place) == digest(copied)
        frozen = IMAGES[:count].copy()
        frozen.flags.writeable = False
        assert digest(split_off_test(dataclasses.replace(arrays, train_images=frozen), in_place=True)) == digest(copied)


# -- files and memory -------------------------------------------------------------------------------------------------


def test_files_larger_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressed file must fit; one without compression holds what it declares, and is read in any case."""
    images = np.zeros((3000, 1, 28, 28), np.uint8)  # compresses by a factor of several hundred
    images[:, 0, 3, 3] = 255
    monkeypatch.setattr(sources, "available_bytes", lambda: 10**6)
    with pytest.raises(InputError) as caught:
        read(tmp_path, np.savez_compressed, train_images=images)
    message = str(caught.value)
    assert "own.npz: its arrays take 0.0024 GB, and 0.001 GB of memory are available: store fewer images" in message
    assert "np.savez" in message
    assert len(read(tmp_path, np.savez, train_images=images).train_images) == 2700
    assert len(read(tmp_path, np.savez_compressed, train_images=images[:300]).train_images) == 270
    monkeypatch.setattr(sources, "available_bytes", lambda: 10**7)
    assert len(read(tmp_path, np.savez_compressed, train_images=images).train_images) == 2700


def test_memory_that_runs_out_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError("Unable to allocate 3 GiB")

    monkeypatch.setattr("numpy.lib.format.read_array", full)
    assert "its arrays do not fit into memory: store fewer or smaller images" in refusal(tmp_path, train_images=IMAGES)
