"""Raw image arrays of a data set, before any scaling, as sources return and the cache stores them."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np

from vaerun.errors import InputError

FIELDS = ("train_images", "train_labels", "test_images", "test_labels")
"""The arrays of a data set, in the order of the digest."""


@dataclass(frozen=True)
class Arrays:
    """Raw images of a data set.

    `split` is "official", or describes a split made by vaerun, on which results are comparable only with each other.
    """

    train_images: np.ndarray  # uint8 [N, C, H, W]
    train_labels: np.ndarray | None  # int64 [N]
    test_images: np.ndarray | None  # uint8 [M, C, H, W]; None: vaerun splits off a test part
    test_labels: np.ndarray | None  # int64 [M]
    split: str
    sha256: str = ""  # digest of the arrays, filled in by the cache


def check_arrays(arrays: Arrays, where: str) -> Arrays:
    """Validated arrays in the stored layout: images uint8 [N, C, H, W], labels int64 [N], all C-contiguous.

    [N, H, W] images get C = 1. Raises InputError, its message prefixed by `where`, for wrong dtypes, ranks, numbers of
    channels and lengths, empty arrays, negative labels, and a test part that does not match the training part.
    """
    train = _check_images(arrays.train_images, f"{where}: train_images")
    labels = _check_labels(arrays.train_labels, len(train), f"{where}: train_labels")
    test = None
    if arrays.test_images is not None:
        test = _check_images(arrays.test_images, f"{where}: test_images")
        if test.shape[1:] != train.shape[1:]:
            raise InputError(
                f"{where}: test images are {_format_shape(test.shape[1:])} but training images are "
                f"{_format_shape(train.shape[1:])} (channels x height x width); both must have the same shape"
            )
    elif arrays.test_labels is not None:
        raise InputError(f"{where}: there are test_labels but no test_images: add test_images or remove test_labels")
    test_labels = _check_labels(arrays.test_labels, 0 if test is None else len(test), f"{where}: test_labels")
    return dataclasses.replace(
        arrays, train_images=train, train_labels=labels, test_images=test, test_labels=test_labels
    )


def digest(arrays: Arrays) -> str:
    """Hexadecimal sha256 of name, dtype, shape and bytes of each array present, in the order of `FIELDS`."""
    sha = hashlib.sha256()
    for field in FIELDS:
        array = getattr(arrays, field)
        if array is not None:
            sha.update(f"{field} {array.dtype.str} {array.shape}\n".encode())
            sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def split_off_test(images: np.ndarray, labels: np.ndarray | None, fraction: float = 0.1, seed: int = 0) -> Arrays:
    """Split off a test part of images [N, C, H, W] and labels [N] that have no official one.

    Both parts are in the order of one seeded permutation, so that a prefix of either is a random subset even if the
    images are sorted by class. Raises InputError for fewer than two images.
    """
    count = len(images)
    if count < 2:
        raise InputError(
            f"a data set of {count} image(s) cannot be split into a training and a test part: at least 2 are needed"
        )
    # numpy guarantees the stream of RandomState; that of default_rng, and so the split, may change with a release.
    order = np.random.RandomState(seed).permutation(count)
    held_out = min(count - 1, max(1, round(fraction * count)))
    test, train = order[:held_out], order[held_out:]
    return Arrays(
        train_images=images[train],
        train_labels=None if labels is None else labels[train],
        test_images=images[test],
        test_labels=None if labels is None else labels[test],
        split=f"vaerun: {fraction:.0%} test by seed {seed}",
    )


def _format_shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)


def _check_images(images: np.ndarray, where: str) -> np.ndarray:
    """Images as uint8 [N, C, H, W]."""
    if images.dtype != np.uint8:
        problem = f"dtype is {images.dtype}"
        if images.dtype.kind in "fc" and np.isnan(images).any():
            problem += ", with NaN"
        raise InputError(f"{where}: {problem}; expected uint8 pixels 0..255 [N, C, H, W]")
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4:
        raise InputError(f"{where}: shape is {list(images.shape)}; expected [N, C, H, W] or [N, H, W]")
    if images.size == 0:
        raise InputError(f"{where}: shape is {list(images.shape)}, which is empty; at least one image is needed")
    if images.shape[1] not in (1, 3):
        hint = "expected 1 or 3 channels"
        if images.shape[3] in (1, 3):
            hint = "this looks channels-last: store images.transpose(0, 3, 1, 2)"
        raise InputError(f"{where}: shape {list(images.shape)} as [N, C, H, W] has {images.shape[1]} channels; {hint}")
    return np.ascontiguousarray(images)


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
