"""Labels of any usual form as class indices 0, 1, 2, ..."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vaerun.errors import InputError


@dataclass(frozen=True)
class Labels:
    """Labels in the stored layout.

    Attributes:
        labels: by part, int64 [N], C-contiguous; None: the part has none.
        names: name of each class; classes that do not occur in training come last. None: no labels.
        notes, warnings: see `Arrays`.
    """

    labels: dict[str, np.ndarray | None]
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def index_labels(
    parts: Mapping[str, np.ndarray | None], counts: Mapping[str, int], names: tuple[str, ...] | None, where: str
) -> Labels:
    """Index the labels of all parts by one mapping.

    Arguments:
        parts: labels of each part.
        counts: number of images of each part.
        names: name of each label, if they are indices already; else they are named by their values.
        where: prefix of error messages.

    Raises InputError for wrong dtypes and lengths.
    """
    labels = {part: _check_labels(values, counts[part], f"{where}: {part}_labels") for part, values in parts.items()}
    present = [values for values in labels.values() if values is not None]
    if names is None and present:
        names = tuple(map(str, range(1 + max(int(values.max()) for values in present))))
    return Labels(labels, names)


def _check_labels(labels: np.ndarray | None, count: int, where: str) -> np.ndarray | None:
    """Labels as int64 [count]; None stays None."""
    if labels is None:
        return None
    if labels.dtype.kind not in "iu":
        raise InputError(f"{where}: dtype is {labels.dtype}; expected integer class indices 0, 1, 2, ...")
    if labels.shape != (count,):
        raise InputError(f"{where}: shape is {list(labels.shape)}; expected [{count}], one label per image")
    labels = np.ascontiguousarray(labels, dtype=np.int64)
    if labels.min() < 0:
        raise InputError(f"{where}: the smallest label is {labels.min()}; expected class indices 0, 1, 2, ...")
    return labels
