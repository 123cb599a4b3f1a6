"""Labels in every usual form: the same classes, one mapping for all parts, and what is said of them."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import pytest

from vaerun.data.arrays import Arrays, check_arrays
from vaerun.data.dataset import ImageData
from vaerun.data.labels import Labels, index_labels
from vaerun.errors import InputError

CLASSES = np.array([2, 0, 1, 1, 0, 2])


def index(names: tuple[str, ...] | None = None, count: int = 6, **parts: Any) -> Labels:
    arrays = {part: None if labels is None else np.asarray(labels) for part, labels in parts.items()}
    labels = index_labels(arrays, dict.fromkeys(parts, count), names, "file")
    for array in labels.labels.values():
        assert array is None or (array.dtype == np.int64 and array.flags.c_contiguous)
    return labels


def refusal(**parts: Any) -> str:
    with pytest.raises(InputError) as caught:
        index(**parts)
    message = str(caught.value)
    assert message.startswith("file: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", "i8", "u8", ">i4", "f4", "f8"])
@pytest.mark.parametrize("shape", [(6,), (6, 1), (1, 6), (6, 1, 1)])
def test_class_indices_stay_as_they_are(dtype: str, shape: tuple[int, ...]) -> None:
    labels = index(train=CLASSES.astype(dtype).reshape(shape))
    np.testing.assert_array_equal(labels.labels["train"], CLASSES)
    assert (labels.names, labels.unused, labels.notes) == (("0", "1", "2"), "", ())


@pytest.mark.parametrize("dtype", [bool, "u1", "f4", "i8"])
def test_one_hot(dtype: Any) -> None:
    one_hot = np.eye(3)[CLASSES].astype(dtype)
    for array in (one_hot, one_hot.T):  # MATLAB has the images last
        np.testing.assert_array_equal(index(train=array).labels["train"], CLASSES)
    labels = index(train=np.eye(5)[CLASSES * 2])  # columns 1 and 3 do not occur
    np.testing.assert_array_equal(labels.labels["train"], CLASSES)
    assert labels.names == ("0", "2", "4")
    np.testing.assert_array_equal(index(count=1, train=[[0, 1]]).labels["train"], [0])


@pytest.mark.parametrize(
    ("values", "names", "note"),
    [
        ([101, 102, 103], ("101", "102", "103"), "labels 101..103 are classes 0..2"),
        ([1, 2, 3], ("1", "2", "3"), "labels 1..3 are classes 0..2"),
        ([-5, 0, 70], ("-5", "0", "70"), "labels -5, 0, 70 are classes 0..2"),
        ([-1.0, 1.0, 9.0], ("-1", "1", "9"), "labels -1, 1, 9 are classes 0..2"),
        ([3_000_000_000, 2**62, 2**63 - 1], ("3000000000", str(2**62), str(2**63 - 1)), None),
    ],
)
def test_other_numbers_are_classes_in_their_order(values: list[Any], names: tuple[str, ...], note: str | None) -> None:
    labels = index(train=np.array(values)[CLASSES])
    np.testing.assert_array_equal(labels.labels["train"], CLASSES)
    assert labels.names == names
    assert len(labels.notes) == 1
    assert note is None or labels.notes == (note,)


@pytest.mark.parametrize("kind", ["U", "S", "O"])
def test_text(kind: str) -> None:
    names = np.array(["img2", "img10", "Übel"], dtype=object)
    values = names[CLASSES]
    if kind == "S":
        values = np.array([value.encode() for value in values])
    labels = index(train=values if kind == "O" else values.astype(kind if kind == "U" else values.dtype))
    np.testing.assert_array_equal(labels.labels["train"], CLASSES)
    assert (labels.names, labels.notes) == (("img2", "img10", "Übel"), ())


def test_text_is_compared_in_its_composed_form() -> None:
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    labels = index(train=forms * 3, test=forms[::-1] * 3)
    assert labels.names == (forms[0],)


def test_bools() -> None:
    labels = index(train=CLASSES > 0)
    np.testing.assert_array_equal(labels.labels["train"], CLASSES > 0)
    assert (labels.names, labels.notes) == (("False", "True"), ())


def test_one_mapping_for_all_parts_with_the_classes_of_training_first() -> None:
    labels = index(train=[10, 30, 10, 30, 30, 30], test=[20, 30, 10, 20, 5, 5], validation=[[30]] * 6)
    assert labels.names == ("10", "30", "5", "20")
    np.testing.assert_array_equal(labels.labels["train"], [0, 1, 0, 1, 1, 1])
    np.testing.assert_array_equal(labels.labels["test"], [3, 1, 0, 3, 2, 2])
    np.testing.assert_array_equal(labels.labels["validation"], [1] * 6)
    assert labels.notes == ("labels 10, 30, 5, 20 are classes 0..3",)


def test_a_mapping_once_made_stays() -> None:
    labels = index(train=[10, 30, 10, 30, 30, 30], test=[20] * 6)
    again = index(names=labels.names, **labels.labels)
    assert (again.names, again.notes) == (labels.names, ())
    for part, array in labels.labels.items():
        np.testing.assert_array_equal(again.labels[part], array)


@pytest.mark.parametrize("rows", [[[1, 1, 0]] * 6, [[0, 0, 0]] * 6])
def test_several_classes_of_an_image_are_no_classes(rows: list[list[int]]) -> None:
    labels = index(train=rows, test=np.eye(3)[CLASSES])
    assert labels.labels == {"train": None, "test": None}
    assert labels.names is None
    assert "train_labels name several classes, or none, of an image" in labels.unused
    assert labels.notes == (labels.unused,)


def test_missing_labels_are_named() -> None:
    labels = index(train=CLASSES, test=None, validation=None)
    np.testing.assert_array_equal(labels.labels["train"], CLASSES)
    assert (
        labels.unused == "test_labels and validation_labels are missing, so the labels of the other parts are not used"
    )
    assert labels.notes == (labels.unused,)
    assert "train_labels are missing" in index(train=None, test=CLASSES).unused
    assert index(train=None, test=None) == Labels({"train": None, "test": None})


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, np.nan, 0, 0, 0], "train_labels: label 2 is nan; labels are classes"),
        ([0, 1, np.inf, 0, 0, 0], "train_labels: label 2 is inf"),
        ([0, 0.5, 1, 0, 0, 0], "train_labels: label 1 is 0.5; labels are classes, which are whole numbers or names"),
        (
            [0, 1, 2],
            "train_labels: shape is [3]; expected one label per image [N] (or [N, 1], or one-hot [N, K]), N = 6",
        ),
        (np.zeros((6, 2, 2), int), "train_labels: shape is [6, 2, 2]"),
        (np.arange(12).reshape(6, 2), "train_labels: shape is [6, 2], with values other than 0 and 1"),
        (np.array(["a", "b"] * 6).reshape(6, 2), "train_labels: shape is [6, 2]"),
        (np.array([None] * 6), "train_labels: dtype is object"),
        (np.array([1j] * 6), "train_labels: dtype is complex128"),
        (np.array([b"\xff"] * 6), "is not UTF-8"),
        ([], "train_labels: shape is [0]"),
        (3, "train_labels: shape is []"),
    ],
)
def test_what_is_no_label(labels: Any, words: str) -> None:
    assert words in refusal(train=labels)


def test_text_and_numbers_do_not_mix() -> None:
    message = refusal(train=["1"] * 6, test=[1] * 6)
    assert "train_labels are <U1 but test_labels are int64: store both as numbers, or both as text" in message
    index(train=np.array([1] * 6).astype(str), test=["1"] * 6)


def test_indices_fit_the_names_that_are_given() -> None:
    names = ("cat", "dog", "emu")
    assert index(names=names, train=CLASSES).names == names
    for labels in (CLASSES + 1, CLASSES - 1, ["cat"] * 6):
        assert "train_labels must be integers 0..2" in refusal(names=names, train=labels)


# -- in a data set ----------------------------------------------------------------------------------------------------


def data(train_labels: Any, test_labels: Any, images: np.ndarray | None = None, **options: Any) -> ImageData:
    if images is None:
        images = np.random.RandomState(0).randint(0, 256, (6, 1, 8, 8)).astype(np.uint8)
    labels = [None if values is None else np.asarray(values) for values in (train_labels, test_labels)]
    arrays = check_arrays(check_arrays(Arrays(images, labels[0], images, labels[1], "own"), "file"), "again")
    return ImageData("own", arrays, validation=0, **options)


def test_classes_without_training_images_are_told_of_once() -> None:
    unknown = data([7, 7, 8, 8, 8, 8], [9, 7, 7, 7, 7, 7])
    assert unknown.class_names == ("7", "8", "9")
    assert unknown.unseen_classes == ("9",)
    assert unknown.warnings == ("no training image is of class 9",)
    assert unknown.arrays.notes == ("labels 7..9 are classes 0..2",)
    assert data(CLASSES, CLASSES).warnings == ()
    assert data(CLASSES, CLASSES, train_images=2).unseen_classes == ("1",)


def test_labels_that_cannot_be_used() -> None:
    for labels in ((CLASSES, None), (None, CLASSES), (np.ones((6, 3)), np.ones((6, 3)))):
        unlabelled = data(*labels)
        assert (unlabelled.classes, unlabelled.train.labels) == (0, None)
        assert unlabelled.arrays.notes == (unlabelled.no_labels,)
    assert data(None, None).no_labels == "data set own has no labels"


def test_a_class_by_name_or_index() -> None:
    named = data([101, 102, 1, 1, 1, 1], [1] * 6)
    assert [named.class_index(label) for label in (1, 101, "102", 0, 2)] == [0, 1, 2, 0, 2]
    text = data(["ã", "b", "b", "b", "b", "b"], ["b"] * 6)
    assert [text.class_index(label) for label in ("b", unicodedata.normalize("NFD", "ã"), 1)] == [0, 1, 1]
    for label in (3, -1, "c", None, [1], 0.5):
        with pytest.raises(InputError, match=r"^evaluation.label=.*: the classes are b, ã$"):
            text.class_index(label)


@pytest.mark.parametrize(
    ("on", "word"), [(0.001, "black"), (0.999, "white"), (0.0, "black"), (0.02, None), (0.9, None)]
)
def test_binary_images_that_are_all_but_one_colour(on: float, word: str | None) -> None:
    images = np.zeros((6, 1, 50, 50), np.uint8)
    images.reshape(-1)[: round(on * images.size)] = 255
    if on == 0:
        images[0, 0, 0, 0] = 255
    lines = data(None, None, np.random.RandomState(0).permutation(images.reshape(-1)).reshape(images.shape)).warnings
    assert [line for line in lines if "near 0 nats" in line] == list(lines)
    assert len(lines) == (word is not None)
    assert word is None or f"the images are all but {word}" in lines[0]
