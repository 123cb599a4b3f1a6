"""Labels of any usual form as class indices 0, 1, 2, ...

The classes are the values that occur, in the order of numbers or the natural order of text: those of the training part
first, then those that only other parts have. One mapping holds for all parts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vaerun.errors import InputError
from vaerun.text import natural_key

FORMS = "expected one label per image [N] (or [N, 1], or one-hot [N, K])"


@dataclass(frozen=True)
class Labels:
    """Labels in the stored layout.

    Attributes:
        labels: by part, int64 [N], C-contiguous; None: the part has none.
        names: name of each class; classes that do not occur in training come last. None: no labels.
        unused: why the labels of some parts cannot be used; empty: they can, or there are none.
        notes: see `Arrays`.
    """

    labels: dict[str, np.ndarray | None]
    names: tuple[str, ...] | None = None
    unused: str = ""
    notes: tuple[str, ...] = ()


class _SeveralClasses(Exception):
    """Raised for labels [N, K] of 0 and 1 with several ones, or none, in a row."""


def index_labels(
    parts: Mapping[str, np.ndarray | None], counts: Mapping[str, int], names: tuple[str, ...] | None, where: str
) -> Labels:
    """Index the labels of all parts by one mapping.

    Arguments:
        parts: labels of each part, the training part first: integers, whole floats, bools or text, [N] or [N, 1]; or
            one-hot [N, K].
        counts: number of images of each part.
        names: name of each label, if they are indices already; else they are named by their values.
        where: prefix of error messages.

    Raises InputError for labels of another form, and a wrong number of them.
    """
    values = dict[str, np.ndarray]()
    for part, labels in parts.items():
        if labels is not None:
            try:
                values[part] = _values(labels, counts[part], f"{where}: {part}_labels")
            except _SeveralClasses:
                unused = f"{part}_labels name several classes, or none, of an image, so there are no classes"
                return Labels(dict.fromkeys(parts), None, unused, (unused,))
    if not values:
        return Labels(dict.fromkeys(parts), names)
    kinds = {array.dtype.kind == "U": f"{part}_labels are {array.dtype}" for part, array in values.items()}
    if len(kinds) == 2:
        raise InputError(f"{where}: {kinds[True]} but {kinds[False]}: store both as numbers, or both as text")
    if names is None:
        classes = _classes(list(values.values()))
    else:
        classes = list(range(len(names)))
        _check_indices(values, len(classes), where)
    indexed = dict[str, np.ndarray | None](dict.fromkeys(parts))
    index = {value: i for i, value in enumerate(classes)}
    for part, array in values.items():
        distinct, inverse = np.unique(array, return_inverse=True)
        table = np.array([index[value] for value in distinct.tolist()], dtype=np.int64)
        indexed[part] = table[inverse.reshape(-1)]
    missing = [f"{part}_labels" for part in parts if part not in values]
    unused = f"{' and '.join(missing)} are missing, so the labels of the other parts are not used" if missing else ""
    notes = [unused] if unused else []
    if names is None and not missing and classes != list(range(len(classes))) and not isinstance(classes[0], str):
        notes.append(f"labels {_list(classes)} are classes {_list(list(range(len(classes))))}")
    return Labels(indexed, names or tuple(map(str, classes)), unused, tuple(notes))


def _values(labels: np.ndarray, count: int, where: str) -> np.ndarray:
    """The label of each image [N]: integers (int64, uint64), bools or text. Raises _SeveralClasses."""
    if labels.dtype.kind == "O" and all(isinstance(value, str) for value in labels.flat):
        labels = labels.astype(str)
    if labels.dtype.kind not in "buifSU":
        raise InputError(f"{where}: dtype is {labels.dtype}; expected integers or names of classes")
    if labels.dtype.kind == "f":
        labels = _whole(labels, where)
    if labels.ndim == 2 and labels.size != count and count in labels.shape and labels.dtype.kind not in "SU":
        labels = _argmax(labels if labels.shape[0] == count else labels.T, where)
    if labels.size != count or max(labels.shape, default=0) != count:
        raise InputError(f"{where}: shape is {list(labels.shape)}; {FORMS}, N = {count}")
    labels = labels.reshape(-1)
    return _text(labels, where) if labels.dtype.kind in "SU" else labels


def _whole(labels: np.ndarray, where: str) -> np.ndarray:
    """Floats as integers."""
    bad = np.flatnonzero(~((labels == np.rint(labels)) & (np.abs(labels) < 2**53)))  # NaN compares as false
    if len(bad):
        raise InputError(
            f"{where}: label {bad[0]} is {labels.flat[bad[0]]}; labels are classes, which are whole numbers or names: "
            "store such, or no labels"
        )
    return labels.astype(np.int64)


def _argmax(labels: np.ndarray, where: str) -> np.ndarray:
    """Column of the one in each row of one-hot labels [N, K]."""
    if labels.min() < 0 or labels.max() > 1:
        raise InputError(f"{where}: shape is {list(labels.shape)}, with values other than 0 and 1; {FORMS}")
    if (labels.sum(1) != 1).any():
        raise _SeveralClasses
    return labels.argmax(1)


def _text(labels: np.ndarray, where: str) -> np.ndarray:
    """Text in Unicode's composed form (NFC), in which equal names are equal; bytes are UTF-8."""
    try:
        texts = [value.decode("utf-8") if isinstance(value, bytes) else value for value in labels.tolist()]
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: {error.object!r} is not UTF-8: store names of classes as text") from error
    return np.array([unicodedata.normalize("NFC", text) for text in texts])


def _classes(values: list[np.ndarray]) -> list[Any]:
    """The distinct labels in order, those of the first part before others."""
    found = [set(np.unique(array).tolist()) for array in values]
    key = natural_key if values[0].dtype.kind == "U" else None
    return sorted(found[0], key=key) + sorted(set().union(*found) - found[0], key=key)


def _check_indices(values: Mapping[str, np.ndarray], classes: int, where: str) -> None:
    for part, array in values.items():
        if array.dtype.kind not in "bui" or array.min() < 0 or array.max() >= classes:
            raise InputError(
                f"{where}: {part}_labels must be integers 0..{classes - 1}, one for each of the class names"
            )


def _list(values: list[Any]) -> str:
    """A range if the values are consecutive, else the first few."""
    if len(values) > 2 and values == list(range(values[0], values[0] + len(values))):
        return f"{values[0]}..{values[-1]}"
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
