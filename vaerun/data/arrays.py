"""Raw image arrays of a data set, before any scaling, as sources return and the cache stores them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vaerun.data.labels import index_labels
from vaerun.data.pixels import to_uint8
from vaerun.errors import InputError

PARTS = ("train", "test", "validation")
FIELDS = tuple(f"{part}_{kind}" for part in PARTS for kind in ("images", "labels"))
"""The arrays of a data set, in the order of the digest."""


@dataclass(frozen=True)
class Arrays:
    """Raw images of a data set.

    Attributes:
        train_images: uint8 [N, C, H, W].
        train_labels: int64 [N].
        test_images: uint8 [M, C, H, W]; None: vaerun splits off a test part.
        test_labels: int64 [M].
        split: "official", or describes a split made by vaerun, on which results are comparable only with each other.
        sha256: digest of the arrays, filled in by the cache.
        validation_images: uint8 [V, C, H, W]; None: some of the training images are held out for validation.
        validation_labels: int64 [V].
        class_names: name of each label; None: its number.
        unlabelled: why labels that there are cannot be used; empty: they can, or there are none.
        ids: where the images of a part come from, [N] each: row in the part's array as the source had it (int64), or
            file name (str). A part that is missing is as the source had it.
        notes: what the user should know about how the source was read: clauses, such as "2 hidden files left out".
        warnings: lines on what is probably a mistake.

    A source may return images and labels in any form that `check_arrays` accepts.
    """

    train_images: np.ndarray
    train_labels: np.ndarray | None
    test_images: np.ndarray | None
    test_labels: np.ndarray | None
    split: str
    sha256: str = ""
    validation_images: np.ndarray | None = None
    validation_labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    unlabelled: str = ""
    ids: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def part_ids(self, part: str) -> np.ndarray:
        """Row or file name of each image of a part, [N] int64 or str."""
        return self.ids[part] if part in self.ids else np.arange(len(getattr(self, f"{part}_images")))


def check_arrays(arrays: Arrays, where: str, *, in_place: bool = False) -> Arrays:
    """Validated arrays in the stored layout: images uint8 [N, C, H, W], labels int64 [N], all C-contiguous.

    The forms of images and labels that are accepted are those of `to_uint8` and `index_labels`; what is in this layout
    already is returned as it is. With `in_place`, large images are overwritten instead of copied where that is
    possible. Raises InputError, its message prefixed by `where`, for other forms, and for parts that do not match each
    other.
    """
    present = {part: images for part in PARTS if (images := getattr(arrays, f"{part}_images")) is not None}
    for part in PARTS:
        if part not in present and getattr(arrays, f"{part}_labels") is not None:
            raise InputError(
                f"{where}: there are {part}_labels but no {part}_images: add {part}_images or remove {part}_labels"
            )
    shapes = {part: labels.shape for part in present if (labels := getattr(arrays, f"{part}_labels")) is not None}
    pixels = to_uint8(present, where, shapes, in_place)
    train = pixels.images["train"]
    for part, images in pixels.images.items():
        if images.shape[1:] != train.shape[1:]:
            raise InputError(
                f"{where}: {part} images are {_format_shape(images.shape[1:])} but training images are "
                f"{_format_shape(train.shape[1:])} (channels x height x width); both must have the same shape"
            )
    counts = {part: len(images) for part, images in pixels.images.items()}
    labels = index_labels(
        {part: getattr(arrays, f"{part}_labels") for part in counts}, counts, arrays.class_names, where
    )
    changes: dict[str, Any] = {f"{part}_images": images for part, images in pixels.images.items()}
    changes |= {f"{part}_labels": part_labels for part, part_labels in labels.labels.items()}
    return dataclasses.replace(
        arrays,
        **changes,
        class_names=labels.names,
        unlabelled=labels.unused or arrays.unlabelled,
        # Once each: what a source has checked is checked again.
        notes=tuple(dict.fromkeys((*arrays.notes, *pixels.notes, *labels.notes))),
        warnings=tuple(dict.fromkeys((*arrays.warnings, *pixels.warnings))),
    )


def digest(arrays: Arrays) -> str:
    """Hexadecimal sha256 of name, dtype, shape and bytes of each array present, in the order of `FIELDS`."""
    sha = hashlib.sha256()
    for name in FIELDS:
        array = getattr(arrays, name)
        if array is not None:
            sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def split_off_test(arrays: Arrays, fraction: float = 0.1, seed: int = 0, *, in_place: bool = False) -> Arrays:
    """Split off a test part from training images that have no official one.

    Both parts are in the order of one seeded permutation, so that a prefix of either is a random subset even if the
    images are sorted by class. With `in_place`, the images are permuted where they are, and both parts are views of
    them. Raises InputError for fewer than two images.
    """
    count = len(arrays.train_images)
    if count < 2:
        raise InputError(
            f"a data set of {count} image(s) cannot be split into a training and a test part: at least 2 are needed"
        )
    # numpy guarantees the stream of RandomState; that of default_rng, and so the split, may change with a release.
    order = np.random.RandomState(seed).permutation(count)
    held_out = min(count - 1, max(1, round(fraction * count)))
    rows = {"test": order[:held_out], "train": order[held_out:]}
    ids, labels = arrays.part_ids("train"), arrays.train_labels
    images = arrays.train_images
    if in_place and images.flags.writeable:
        _permute(images, order.tolist())
        parts: dict[str, Any] = {"test_images": images[:held_out], "train_images": images[held_out:]}
    else:
        parts = {f"{part}_images": images[chosen] for part, chosen in rows.items()}
    parts |= {f"{part}_labels": None if labels is None else labels[chosen] for part, chosen in rows.items()}
    return dataclasses.replace(
        arrays,
        **parts,
        ids={**arrays.ids, **{part: ids[chosen] for part, chosen in rows.items()}},
        split=f"vaerun: {fraction:.0%} test by seed {seed}",
    )


def _permute(array: np.ndarray, order: list[int]) -> None:
    """`array[:] = array[order]` without a copy of the array: cycle by cycle."""
    done = bytearray(len(order))
    for start in range(len(order)):
        if done[start] or order[start] == start:
            continue
        first, row = array[start].copy(), start
        while order[row] != start:
            array[row] = array[order[row]]
            done[row] = 1
            row = order[row]
        array[row] = first
        done[row] = 1


def _format_shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)
