"""Folders of images: which files are read, which are left out, and what is a part, a class or neither."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vaerun.data import sources
from vaerun.data.arrays import Arrays
from vaerun.data.cache import load_arrays
from vaerun.data.folders import part_of
from vaerun.errors import InputError

IMAGES = np.random.RandomState(0).randint(0, 256, (20, 4, 5, 3)).astype(np.uint8)
CAFE, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VAERUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VAERUN_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "own").mkdir()
    return tmp_path / "own"


def fill(root: Path, *names: str) -> list[str]:
    """Write image i to the i-th name; those that end in / become folders and those without .png empty files."""
    for i, name in enumerate(names):
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.lower().endswith(".png"):
            Image.fromarray(IMAGES[i]).save(path)
        else:
            path.touch()
    return list(names)


def read(root: Path, **options: Any) -> Arrays:
    return load_arrays("folder", sources.folder, path=str(root), options=options)


def by_name(arrays: Arrays) -> dict[str, np.ndarray]:
    """Images [C, H, W] by file name."""
    parts = {"train": arrays.train_images, "test": arrays.test_images, "validation": arrays.validation_images}
    images: dict[str, np.ndarray] = {}
    for part, pixels in parts.items():
        if pixels is not None:
            assert len(pixels) == len(arrays.ids[part])
            images |= dict(zip(arrays.ids[part].tolist(), pixels, strict=True))
    return images


def classes(arrays: Arrays) -> dict[str, str]:
    """Class by file name."""
    assert arrays.class_names is not None
    names = {}
    for part in arrays.ids:
        labels = getattr(arrays, f"{part}_labels")
        names |= {i: arrays.class_names[y] for i, y in zip(arrays.ids[part].tolist(), labels.tolist(), strict=True)}
    return names


def refused(root: Path, *words: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def test_parts_and_classes(root: Path) -> None:
    fill(root, "train/cat/10.png", "train/cat/2.PNG", "train/dog/1.png", "test/dog/1.png")
    arrays = read(root)
    np.testing.assert_array_equal(arrays.train_images.transpose(0, 2, 3, 1), IMAGES[[1, 0, 2]])
    assert arrays.test_images is not None
    np.testing.assert_array_equal(arrays.test_images.transpose(0, 2, 3, 1), IMAGES[[3]])
    np.testing.assert_array_equal(arrays.train_labels, [0, 0, 1])
    np.testing.assert_array_equal(arrays.test_labels, [1])
    assert arrays.ids["train"].tolist() == ["train/cat/2.PNG", "train/cat/10.png", "train/dog/1.png"]
    assert arrays.ids["test"].tolist() == ["test/dog/1.png"]
    assert (arrays.split, arrays.class_names) == ("official", ("cat", "dog"))
    assert arrays.notes == ("given parts: train/, test/",)


def test_names_lead_to_images_after_the_split(root: Path) -> None:
    names = fill(root, *(f"{'ab'[i % 2]}/{i}.png" for i in range(12)))
    arrays = read(root)
    images = by_name(arrays)
    assert images.keys() == set(names)
    for i, name in enumerate(names):
        np.testing.assert_array_equal(images[name].transpose(1, 2, 0), IMAGES[i])
    assert classes(arrays) == {name: name[0] for name in names}
    assert arrays.split == "vaerun: 10% test by seed 0"


@pytest.mark.parametrize(
    "hidden",
    [".ipynb_checkpoints", "__MACOSX", ".Trashes", "@eaDir", "$RECYCLE.BIN", "System Volume Information", ".git"],
)
def test_hidden_and_system_folders_are_no_data(root: Path, hidden: str) -> None:
    names = fill(root, "cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")
    fill(root, f"{hidden}/x.png", f"{hidden}/cat/x.png", f"cat/{hidden}/x.png")
    arrays = read(root)
    assert classes(arrays) == {name: name[:3] for name in names}
    assert arrays.notes == ("2 hidden or system files left out",)


def test_hidden_and_system_files_are_no_data(root: Path) -> None:
    names = fill(root, "cat/0.png", "dog/0.png", "Thumbs.db", "cat/desktop.ini", "cat/.DS_Store", "cat/._0.png")
    arrays = read(root)
    assert by_name(arrays).keys() == set(names[:2])
    assert arrays.notes == ("4 hidden or system files left out",)


def test_a_hidden_folder_that_is_asked_for(root: Path) -> None:
    names = fill(root / ".data", "0.png", "1.png")
    assert by_name(read(root / ".data")).keys() == set(names)


def test_one_class_in_two_unicode_forms(root: Path) -> None:
    names = fill(root, f"train/{CAFE}/0.png", "train/tea/0.png", f"test/{DECOMPOSED}/0.png", "test/tea/0.png")
    arrays = read(root)
    assert set(arrays.class_names or ()) == {CAFE, "tea"}
    assert list(classes(arrays).values()) == [CAFE, "tea", CAFE, "tea"]
    assert by_name(arrays).keys() == set(names)  # as on the disk
    assert f"folders named {CAFE} in several Unicode forms are one class each" in arrays.notes


def test_two_folders_of_one_class(root: Path) -> None:
    names = fill(root, f"{CAFE}/0.png", f"{DECOMPOSED}/0.png", f"{DECOMPOSED}/1.png", "tea/0.png")
    assert classes(read(root)) == dict(zip(names, [CAFE, CAFE, CAFE, "tea"], strict=True))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *((name, "train") for name in ("train", "Train", "TRAINING", "training_set", "train-images", "trainset")),
        *((name, "test") for name in ("test", "Testing", "test2017", "eval", "data_test", "Test Images", "testData")),
        *((name, "validation") for name in ("val", "Valid", "validation", "dev", "val2017")),
        *((name, None) for name in ("trains", "rain", "contest", "tests", "value", "device", "images", "set", "")),
    ],
)
def test_names_of_parts(name: str, part: str | None) -> None:
    assert part_of(name) == part


@pytest.mark.parametrize("folders", ["Train Test", "training testing", "train testing", "training_set test_set"])
def test_parts_by_other_names(root: Path, folders: str) -> None:
    train, test = folders.split()
    fill(root, f"{train}/a/0.png", f"{train}/b/0.png", f"{test}/a/0.png", f"{test}/b/0.png")
    arrays = read(root)
    assert (arrays.split, len(arrays.train_images), arrays.class_names) == ("official", 2, ("a", "b"))
    assert arrays.notes == (f"given parts: {train}/, {test}/",)


def test_a_given_validation_part(root: Path) -> None:
    fill(root, "train/0.png", "train/1.png", "Val/0.png", "test/0.png")
    arrays = read(root)
    assert arrays.validation_images is not None
    np.testing.assert_array_equal(arrays.validation_images.transpose(0, 2, 3, 1), IMAGES[[2]])
    assert (len(arrays.train_images), arrays.ids["validation"].tolist()) == (2, ["Val/0.png"])
    assert arrays.notes == ("given parts: train/, test/, Val/",)


def test_images_outside_the_parts(root: Path) -> None:
    fill(root, "train/0.png", "test/0.png", "extra/a/0.png", "sample.png")
    assert by_name(read(root)).keys() == {"train/0.png", "test/0.png"}
    assert "2 images outside the parts left out (in extra, sample.png)" in read(root).notes


def test_classes_that_are_called_like_parts(root: Path) -> None:
    names = fill(root, "car/0.png", "car/1.png", "train/0.png", "bus/0.png")
    arrays = read(root)
    assert classes(arrays) == {name: name.split("/")[0] for name in names}
    assert arrays.notes == ("train/ read as classes, not as parts of the data",)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("train/0.png", "val/0.png"), ("has train/, val/ but no test/", "own/train to split off a test part")),
        (("train/a/0.png", "holdout/a/0.png"), ("has train/ but no test/",)),
        (("test/a/0.png", "test/b/0.png"), ("has test/ but no train/", "own/test to split")),
        (("Train/0.png", "training/0.png", "test/0.png"), ("Train/, training/ look like the train part",)),
        (("train/0.png", "test/"), ("own/test: no image files found in the test part",)),
        (("train/a/0.png", "test/0.png"), ("test/0.png is in no class subfolder but train/a/0.png is",)),
        (("a.png", "cat/b.png"), ("a.png is in no class subfolder but cat/b.png is",)),
        (("a.png",), ("there is only one image",)),
        (("notes.txt", "a.heic", "b.heic"), ("no image files", ".png", "only 2 .heic, 1 .txt")),
        ((), ("no image files",)),
    ],
)
def test_folders_that_cannot_be_used(root: Path, names: tuple[str, ...], words: tuple[str, ...]) -> None:
    fill(root, *names)
    refused(root, *words)


def test_a_folder_is_needed(root: Path) -> None:
    fill(root, "0.png")
    refused(root / "0.png", "not a folder")
    with pytest.raises(InputError, match=r"set data\.path=PATH"):
        sources.folder(root)


def test_advice_on_a_missing_test_part(root: Path) -> None:
    fill(root, "train/a/0.png", "train/b/0.png", "val/a/0.png")
    message = refused(root, "set data.path=")
    advised = message.split("data.path=")[1].split(" to split")[0]
    assert read(Path(advised)).split == "vaerun: 10% test by seed 0"


@pytest.mark.parametrize("inside", ["images/{}.png", "archive/images/{}.png"])
def test_one_folder_is_no_class(root: Path, inside: str) -> None:
    names = fill(root, *(inside.format(i) for i in range(3)))
    arrays = read(root)
    assert by_name(arrays).keys() == set(names)
    assert (arrays.train_labels, arrays.class_names) == (None, None)
    assert arrays.notes[-1] == f"all images are in {inside.removesuffix('{}.png')}, which is no class"


def test_an_archive_with_a_folder_of_its_own(root: Path) -> None:
    fill(root, "set/train/a/0.png", "set/train/b/0.png", "set/test/a/0.png")
    arrays = read(root)
    assert (arrays.split, arrays.class_names) == ("official", ("a", "b"))


def test_one_folder_in_each_part_is_no_class(root: Path) -> None:
    fill(root, "train/images/0.png", "train/images/1.png", "test/images/0.png")
    arrays = read(root)
    assert (arrays.train_labels, arrays.class_names) == (None, None)
    assert "all images of each part are in images/, which is no class" in arrays.notes


def test_classes_without_training_images_come_last(root: Path) -> None:
    fill(root, "train/b/0.png", "train/c/0.png", "test/a/0.png", "test/c/0.png")
    arrays = read(root)
    assert arrays.class_names == ("b", "c", "a")
    np.testing.assert_array_equal(arrays.test_labels, [2, 1])


def test_what_is_left_out_is_said(root: Path) -> None:
    fill(root, "a/0.png", "b/2020/0.png", "b/0.heic", "b/1.HEIC", "readme", "empty/", "notes/x.txt")
    (root / "broken").symlink_to("nowhere")
    notes = read(root).notes
    assert notes == (
        "1 image in subfolders of a class (b/2020/0.png) belong to it",
        "left out: 2 .heic, 1 without a suffix, 1 .txt, 1 broken link",
        "no images in empty/, notes/",
    )


def test_a_broken_link_to_an_image(root: Path) -> None:
    fill(root, "0.png")
    (root / "1.png").symlink_to("nowhere.png")
    refused(root, "1.png", "link without a target")


def test_a_folder_that_cannot_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(root, "a/0.png", "b/0.png", ".Trashes/x.png")
    scandir = os.scandir

    def deny(path: Any) -> Any:
        if str(path).endswith(("/b", "/.Trashes")):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    refused(root, "own/b: cannot be listed (Permission denied)", "make it readable")


def test_names_that_are_no_text(root: Path) -> None:
    """Bytes that are not UTF-8, in names that reach the terminal and the record."""
    folder = os.fsencode(root) + b"/caf\xe9"
    os.mkdir(folder)
    fill(root, "tea/0.png", "tea/1.png")
    Image.fromarray(IMAGES[2]).save(os.fsdecode(folder + b"/x.png"))
    arrays = read(root)
    assert arrays.class_names == ("caf\\xe9", "tea")
    assert "caf\\xe9/x.png" in by_name(arrays)


def test_a_folder_is_read_again_if_anything_changes(root: Path, cache: Path) -> None:
    fill(root, "a/0.png", "b/0.png")

    def copies() -> int:
        read(root)
        return len([path for path in (cache / "prepared").iterdir() if path.is_dir()])

    assert (copies(), copies()) == (1, 1)
    for i, name in enumerate(("a/1.png", "a/x.heic", "c/", "a/.hidden"), start=2):  # read, or said
        fill(root, name)
        assert copies() == i, name
