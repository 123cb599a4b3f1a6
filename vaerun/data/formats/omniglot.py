"""The Omniglot of Burda, Grosse and Salakhutdinov (2016): chardata.mat, 28 x 28, 24,345 and 8,070 images.

Published log-likelihoods of Omniglot are mostly on these images, binarised at random with their grey values as
probabilities. The file has `data` and `testdata` [784, N], grey values in [0, 1] with the pixels of an image
column-major; the alphabet of each image as `target` and `testtarget` [50, N], one-hot; and the number of its character
within the alphabet as `targetchar` and `testtargetchar` [1, N].
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vaerun.data.arrays import Arrays
from vaerun.errors import InputError

COUNTS = (24_345, 8_070)
SPLIT = "official, Burda et al. (2016)"
SIDE = 28


def is_omniglot(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a MATLAB file's arrays are those of chardata.mat."""
    return all(name in arrays and len(arrays[name]) == SIDE * SIDE for name in ("data", "testdata"))


def omniglot(arrays: Mapping[str, np.ndarray], where: str) -> Arrays:
    """The data set. Each character is a class, named by alphabet and number. Raises InputError for other shapes."""
    counts = arrays["data"].shape[1], arrays["testdata"].shape[1]
    labels, names = _characters(arrays, counts, where)
    published = counts == COUNTS
    warning = (
        f"chardata.mat has {COUNTS[0]:,} and {COUNTS[1]:,} images, this file {counts[0]:,} and {counts[1]:,}: "
        "results do not compare with published ones"
    )
    return Arrays(
        _images(arrays["data"]),
        labels[0],
        _images(arrays["testdata"]),
        labels[1],
        SPLIT if published else f"data and testdata of {counts[0]:,} and {counts[1]:,} images",
        class_names=names,
        notes=("Omniglot of Burda et al. (2016), pixels column-major",) if published else ("pixels column-major",),
        warnings=() if published else (warning,),
    )


def _images(pixels: np.ndarray) -> np.ndarray:
    """[N, 28, 28] from [784, N], whose pixels are column-major."""
    return pixels.T.reshape(-1, SIDE, SIDE).swapaxes(1, 2)


def _characters(
    arrays: Mapping[str, np.ndarray], counts: tuple[int, int], where: str
) -> tuple[list[np.ndarray | None], tuple[str, ...] | None]:
    """Labels of both parts, and the names of the classes; None if the file has none."""
    pairs = list[np.ndarray]()
    for prefix, count in zip(("", "test"), counts, strict=True):
        alphabets, characters = arrays.get(f"{prefix}target"), arrays.get(f"{prefix}targetchar")
        if alphabets is None or characters is None:
            return [None, None], None
        if alphabets.ndim != 2 or alphabets.shape[1] != count or characters.size != count:
            raise InputError(
                f"{where}: {prefix}target and {prefix}targetchar are of shapes {list(alphabets.shape)} and "
                f"{list(characters.shape)}; expected [50, {count}] and [1, {count}]"
            )
        pairs.append(np.stack([alphabets.argmax(0) + 1, characters.reshape(-1).astype(np.int64)], 1))
    classes, labels = np.unique(np.concatenate(pairs), axis=0, return_inverse=True)
    names = tuple(f"alphabet {alphabet} character {character}" for alphabet, character in classes.tolist())
    return list(np.split(labels.reshape(-1), [counts[0]])), names
