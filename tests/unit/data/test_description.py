"""What is said and recorded about a data set, and where its images came from."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vaerun.data.arrays import Arrays, check_arrays, split_off_test
from vaerun.data.cache import load_arrays
from vaerun.data.dataset import ImageData
from vaerun.data.description import data_line, data_lines, describe_data

IMAGES = np.arange(60, dtype=np.uint8).repeat(4).reshape(60, 1, 2, 2)  # image i is i everywhere
LABELS = np.arange(60) % 3
NAMES = ("red", "green", "blue")


def arrays(train: int = 40, validation: int = 0) -> Arrays:
    end = train + validation
    given = (IMAGES[train:end], LABELS[train:end]) if validation else (None, None)
    return check_arrays(
        Arrays(IMAGES[:train], LABELS[:train], IMAGES[end:], LABELS[end:], "official", "", *given, NAMES), "here"
    )


def test_ids_follow_every_split() -> None:
    data = ImageData("npz", split_off_test(arrays()), validation=0.25, train_images=20)
    for split in (data.train, data.validation, data.test):
        assert (split.ids == split.images[:, 0, 0, 0].numpy()).all()
    assert len({*data.train.ids, *data.validation.ids, *data.test.ids}) == 20 + 9 + 4


def test_file_names_follow_every_split() -> None:
    named = replace(arrays(), ids={"train": np.array([f"{i}.png" for i in range(40)])}, test_images=None)
    data = ImageData("folder", split_off_test(replace(named, test_labels=None)), validation=7)
    for split in (data.train, data.validation, data.test):
        assert [f"{value}.png" for value in split.images[:, 0, 0, 0].tolist()] == split.ids.tolist()


def test_a_given_validation_part_is_the_validation_split() -> None:
    data = ImageData("npz", arrays(validation=12), validation=0.5)
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 12, 8)
    assert data.validation.images[:, 0, 0, 0].tolist() == list(range(40, 52))
    assert data.validation.labels is not None
    assert data.validation.labels.tolist() == [i % 3 for i in range(40, 52)]
    assert data.protocol["validation_split"] == "12 images, given"


def test_a_validation_part_is_data_but_how_it_was_read_is_not() -> None:
    def sha256(content: Arrays) -> str:
        return load_arrays("mine", lambda scratch: content, cached=False).sha256

    plain, given = arrays(), arrays(train=30, validation=10)
    assert len({sha256(plain), sha256(given), sha256(replace(given, validation_images=IMAGES[:10]))}) == 3
    assert sha256(plain) == sha256(replace(plain, notes=("one",), warnings=("two",), class_names=("a", "b", "c")))


def test_facts() -> None:
    data = ImageData("npz", replace(arrays(validation=12), notes=("2 hidden files left out",)), validation=0)
    facts = describe_data(data)
    assert facts["images"] == {"train": 40, "validation": 12, "test": 8}
    assert facts["classes"] == {"red": 14, "green": 13, "blue": 13}
    assert (facts["shape"], facts["pixels"], facts["binary"]) == ([1, 2, 2], [0, 39], False)
    assert facts["ids"]["test"] == hashlib.sha256(b"0\n1\n2\n3\n4\n5\n6\n7").hexdigest()
    line = data_line("npz", facts)
    assert "\n" not in line
    for words in (
        "data: npz: 40 training, 12 validation (given), 8 test (official) images of 1x2x2",
        "training pixels 0..39",
        "3 classes (training images): red (14), green (13), blue (13)",
        "; 2 hidden files left out",
    ):
        assert words in line


def test_warnings_follow_the_line() -> None:
    data = ImageData("npz", replace(arrays(), warnings=("all but black",)), validation=0)
    assert data_lines(data)[1:] == ["warning: all but black"]


@pytest.mark.parametrize("count", [10, 11])
def test_a_line_names_ten_classes(count: int) -> None:
    labels = np.arange(60) % count
    data = ImageData("npz", check_arrays(Arrays(IMAGES, labels, IMAGES, labels, "official"), "here"), validation=0)
    assert data.classes == count
    assert data_lines(data)[0].endswith(", ..." if count > 10 else "9 (6)")
    assert len(describe_data(data)["classes"]) == count


def test_a_cached_copy_keeps_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAERUN_CACHE", str(tmp_path))
    ids = {"train": np.array([f"é{i}.png" for i in range(40)]), "test": np.arange(8)[::-1]}
    content = replace(arrays(validation=12), ids=ids, notes=("one", "two"), warnings=("three",))
    for _ in range(2):
        got = load_arrays("mine", lambda scratch: content, cached=True)
        assert isinstance(got.train_images, np.memmap)
        assert (got.class_names, got.notes, got.warnings[0]) == (NAMES, ("one", "two"), "three")
        for part in ("train", "test", "validation"):
            assert got.part_ids(part).tolist() == content.part_ids(part).tolist()
            np.testing.assert_array_equal(getattr(got, f"{part}_images"), getattr(content, f"{part}_images"))


def test_classes_without_names_are_named_by_their_numbers() -> None:
    data = ImageData("mine", Arrays(IMAGES, LABELS, IMAGES, LABELS, "official"), validation=0)
    assert (data.classes, data.class_names) == (3, ("0", "1", "2"))
    assert data.train.batch(0, 2).c is not None
