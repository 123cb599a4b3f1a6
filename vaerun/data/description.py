"""What was read of a data set: for the run's record, and as one line."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from vaerun.data.dataset import ImageData, Split

NAMED_CLASSES = 10  # in the line; the record has them all


def describe_data(data: ImageData) -> dict[str, Any]:
    """The facts about a data set, for result.json.

    `classes` are the numbers of training images by class, and `ids` the sha256 of rows or file names of each split, in
    order. `binary` says whether a Bernoulli likelihood applies.
    """
    splits = {split.name: split for split in (data.train, data.validation, data.test)}
    return {
        "images": {name: len(split) for name, split in splits.items()},
        "split": data.split_name,
        "validation_split": data.validation_split,
        "shape": list(data.image_shape),
        "pixels": _pixel_range(data.train),
        "binary": data.binary,
        "classes": _class_counts(data),
        "ids": {name: ids_digest(split.ids) for name, split in splits.items()},
        "notes": list(data.arrays.notes),
    }


def data_line(name: str, facts: dict[str, Any]) -> str:
    """One line on what was read, from `describe_data`."""
    images, (low, high) = facts["images"], facts["pixels"]
    parts = [f"{images['train']} training"]
    if images["validation"]:
        given = facts["validation_split"].endswith("given")
        origin = "given" if given else "held out of the training images"
        parts.append(f"{images['validation']} validation ({origin})")
    parts.append(f"{images['test']} test ({facts['split']})")
    line = (
        f"data: {name}: {', '.join(parts)} images of {'x'.join(map(str, facts['shape']))} (channels x height x width), "
        f"training pixels {low}..{high}, {_class_text(facts['classes'])}"
    )
    return "; ".join([line, *facts["notes"]])


def data_lines(data: ImageData) -> list[str]:
    """What was read, and what is probably wrong with it."""
    return [data_line(data.name, describe_data(data)), *(f"warning: {line}" for line in data.warnings)]


def _class_text(classes: dict[str, int]) -> str:
    if not classes:
        return "no labels"
    named = [f"{name} ({count})" for name, count in list(classes.items())[:NAMED_CLASSES]]
    more = ", ..." if len(classes) > NAMED_CLASSES else ""
    return f"{len(classes)} classes (training images): {', '.join(named)}{more}"


def _class_counts(data: ImageData) -> dict[str, int]:
    if data.train.labels is None:
        return {}
    counts = torch.bincount(data.train.labels, minlength=data.classes).tolist()
    return dict(zip(data.class_names, counts, strict=True))


def _pixel_range(split: Split) -> list[int]:
    return [int(split.images.min()), int(split.images.max())]


def ids_digest(ids: np.ndarray) -> str:
    """Hexadecimal sha256 of the rows or file names [N], one per line."""
    return hashlib.sha256("\n".join(map(str, ids.tolist())).encode("utf-8", "surrogatepass")).hexdigest()
