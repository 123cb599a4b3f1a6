"""Which array of a file is what, by the usual names: train_images, x_train, val_labels, X, y, imgs, ..."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vaerun.data.arrays import FIELDS
from vaerun.errors import InputError
from vaerun.text import printable

PART_NAMES = {"train": "train|training|tr", "test": "test|testing|te", "validation": "validation|valid|val|dev"}
KIND_NAMES = {"images": "images?|imgs?|pixels|data|x", "labels": "labels?|targets?|y"}


def match_names(names: Sequence[str], where: str) -> tuple[dict[str, str], list[str]]:
    """The name of each array of a data set (`FIELDS`) among those of a file, and notes on names other than these.

    An array without a part in its name belongs to the training part, and one with nothing but a part is its images. A
    file with a single array has images in it. Raises InputError, which names what was found, if there are no training
    images, or several arrays that could be the same one.
    """
    found = {field: [name for name in names if _field(name) == field] for field in FIELDS}
    if len(names) == 1 and not found["train_images"]:
        found["train_images"] = list(names)
    chosen = dict[str, str]()
    for field, candidates in found.items():
        if field in candidates:
            candidates = [field]
        if len(candidates) > 1:
            raise InputError(
                f"{where}: {_and(candidates)} could each be {field}: name the one to use {field}, or keep only that"
            )
        if candidates:
            chosen[field] = candidates[0]
    if "train_images" not in chosen:
        listed = printable(", ".join(names), 500) or "no arrays"
        raise InputError(
            f"{where}: contains {listed}; required: train_images, [N, C, H, W] (optional: train_labels, test_images, "
            "test_labels, validation_images, validation_labels)"
        )
    taken = [f"{name} as {field}" for field, name in chosen.items() if name != field]
    unused = [name for name in names if name not in chosen.values() and name != "split"]
    notes = [f"took {', '.join(taken)}"] if taken else []
    return chosen, notes + ([f"not used: {', '.join(unused)}"] if unused else [])


def _field(name: str) -> str | None:
    """The array that a name stands for, such as x_train, trainX, images or val: part and kind in either order."""
    for part, parts in PART_NAMES.items():
        for kind, kinds in KIND_NAMES.items():
            forms = [f"({parts})[-_. ]?({kinds})", f"({kinds})[-_. ]?({parts})"]
            forms += [parts] if kind == "images" else []
            forms += [kinds] if part == "train" else []
            if re.fullmatch("|".join(forms), name, re.IGNORECASE):
                return f"{part}_{kind}"
    return None


def _and(names: Sequence[str]) -> str:
    return printable(f"{', '.join(names[:-1])} and {names[-1]}", 500)
