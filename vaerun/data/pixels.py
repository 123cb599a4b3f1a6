"""Images of any usual form as uint8 [N, C, H, W].

Three scales are understood: 0 and 1 (binary images, stored as 0 and 255), 0..1 (floats, stored as round(255 x)) and
0..255. The scale is decided over all parts of a data set together. Whatever else there is, is refused with the
expression that brings it to one of the three.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vaerun.data.axes import to_nchw
from vaerun.errors import InputError

WHITE = 255
CHUNK_BYTES = 1 << 24  # converted at once
DARK = 128  # a largest pixel below it is told of
FEWEST_LEVELS = 32  # fractional pixels below it would lose what they show when rounded to 0, 1, 2, ...
TOLERANCE = 1e-6  # by which single precision misses the ends of a scale
EXACT = 0.005  # rounding errors below it, in units of 255, are those of the floats themselves


@dataclass(frozen=True)
class Pixels:
    """Images in the stored layout.

    Attributes:
        images: by part, uint8 [N, C, H, W], C-contiguous; binary images are 0 and 255.
        notes, warnings: see `Arrays`.
    """

    images: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Range:
    """The pixels of one part: smallest, largest, and whether all are whole numbers."""

    low: float
    high: float
    whole: bool


def to_uint8(
    parts: Mapping[str, np.ndarray],
    where: str,
    label_shapes: Mapping[str, tuple[int, ...]] | None = None,
    in_place: bool = False,
) -> Pixels:
    """Convert the images of all parts together, so that they share one scale and one layout.

    Arguments:
        parts: images of each part: numbers of any dtype, in any order of axes that `to_nchw` understands.
        where: prefix of error messages.
        label_shapes: shapes of the labels of the parts that have some.
        in_place: overwrite uint8 arrays where possible, to hold large ones in memory only once.

    Raises InputError for everything else, for pixels that are not finite or on none of the three scales, and for parts
    on different scales.
    """
    for part, images in parts.items():
        if images.dtype.kind not in "buif":
            raise InputError(f"{where}: {part}_images: dtype is {images.dtype}; expected numbers, such as uint8 0..255")
    views, notes = to_nchw(parts, label_shapes or {}, where)
    ranges = {part: _range(images, f"{where}: {part}_images") for part, images in views.items()}
    scale = _scale(ranges, {part: images.dtype for part, images in parts.items()}, where)
    stored, error = dict[str, np.ndarray](), 0.0
    for part, view in views.items():
        stored[part], part_error = _convert(view, scale, in_place)
        error = max(error, part_error)
    kinds = " and ".join(sorted({str(array.dtype) for array in parts.values() if array.dtype.kind == "f"}))
    rounded = f"rounded (by {error:.2f} of 255 at most)" if error >= EXACT else "exact"
    if scale == WHITE and all(r.whole for r in ranges.values()):
        notes.append("pixels of 0 and 1 (the largest of 0..255 is 1) read as binary images, 0 and 255")
    elif scale == WHITE:
        notes.append(f"{kinds} pixels in 0..1 multiplied by 255, {rounded}")
    elif kinds:
        notes.append(f"{kinds} pixels taken as 0..255, {rounded}")
    return Pixels(stored, tuple(notes), tuple(_warnings(stored)))


def _chunks(images: np.ndarray) -> Iterator[slice]:
    step = max(1, CHUNK_BYTES * len(images) // max(1, images.nbytes))
    return (slice(start, start + step) for start in range(0, len(images), step))


def _range(images: np.ndarray, where: str) -> _Range:
    low, high, whole = math.inf, -math.inf, True
    for rows in _chunks(images):
        chunk = images[rows]
        smallest, largest = chunk.min(), chunk.max()
        if not (np.isfinite(smallest) and np.isfinite(largest)):
            bad = np.flatnonzero(~np.isfinite(chunk).reshape(len(chunk), -1).all(1))
            kind = "NaN" if np.isnan(chunk[bad[0]]).any() else "inf"
            raise InputError(f"{where}: image {rows.start + bad[0]} has {kind}: repair or remove such images")
        low, high = min(low, smallest.item()), max(high, largest.item())
        whole = whole and (chunk.dtype.kind != "f" or bool((chunk == np.rint(chunk)).all()))
    return _Range(low, high, whole)


def _scale(ranges: Mapping[str, _Range], dtypes: Mapping[str, np.dtype], where: str) -> int:
    """The factor to 0..255: 255 for pixels in 0..1, else 1."""
    low, high = min(r.low for r in ranges.values()), max(r.high for r in ranges.values())
    whole = all(r.whole for r in ranges.values())
    if low < -TOLERANCE or high > WHITE:
        raise InputError(
            f"{where}: the pixels are in {_span(low, high)}; expected 0..255, 0..1, or 0 and 1: store "
            f"{_to_known_scale(low, high, whole)} in all parts"
        )
    # A part that is black tells nothing.
    dark = [part for part, r in ranges.items() if 0 < r.high <= 1 + TOLERANCE]
    bright = [part for part, r in ranges.items() if r.high > 1 + TOLERANCE]
    if dark and bright:
        raise InputError(
            f"{where}: {bright[0]}_images are in {_span(0, ranges[bright[0]].high)} and {dark[0]}_images in "
            f"{_span(0, ranges[dark[0]].high)}; all parts must have one scale: store {dark[0]}_images * 255"
        )
    if not bright:
        return WHITE if dark or all(dtype.kind == "b" for dtype in dtypes.values()) else 1
    if not whole and high < FEWEST_LEVELS:
        raise InputError(
            f"{where}: the pixels are fractional and in {_span(low, high)}; expected 0..255 or 0..1: store "
            f"{_to_known_scale(low, high, whole)} in all parts"
        )
    return 1


def _span(low: float, high: float) -> str:
    return f"{low:.6g}..{high:.6g}"


def _to_known_scale(low: float, high: float, whole: bool) -> str:
    """An expression of `images` in the range low..high whose values are on a scale that is understood."""
    if not whole and low > -0.3 and 0.7 < high < 1.3:  # resized with a filter that overshoots
        return "np.clip(images, 0, 1)"
    if not whole and low > -64 and WHITE / 2 < high < WHITE + 64:
        return "np.clip(images, 0, 255)"
    if low >= -0.5 and high <= 0.5:
        return "images + 0.5"
    if low >= -1 - TOLERANCE and high <= 1 + TOLERANCE and low < 0:
        return "(images + 1) / 2"
    if whole and low >= -128 and high <= 127 and low < 0:
        return "images.astype(float) + 128"
    if whole and low >= 0 and high < 2**16:
        return f"images / {2 ** math.ceil(math.log2(high + 1)) - 1} (or by the largest value of their scale)"
    bottom, top = (_outward(value, direction) for value, direction in ((min(low, 0), -1), (high, 1)))
    scaled = f"(images - {bottom:g})" if bottom >= 0 else f"(images + {-bottom:g})"
    scaled = scaled if bottom else "images"
    return f"{scaled} / {top - bottom:g} (or whatever undoes their normalisation)"


def _outward(value: float, direction: int) -> float:
    """Two significant digits, rounded away from the range's inside."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    return direction * math.ceil(direction * value / unit) * unit


def _convert(images: np.ndarray, scale: int, in_place: bool) -> tuple[np.ndarray, float]:
    """uint8 [N, C, H, W] and the largest rounding error, in units of 255."""
    if images.dtype == np.uint8 and scale == 1:
        return np.ascontiguousarray(images), 0.0
    reuse = in_place and images.dtype == np.uint8 and images.flags.c_contiguous and images.flags.writeable
    out, error = images if reuse else np.empty(images.shape, np.uint8), 0.0
    for rows in _chunks(images):
        if images.dtype.kind == "f":
            values = images[rows].astype(np.promote_types(images.dtype, np.float32)) * scale
            whole = np.rint(values)
            error = max(error, float(np.abs(values - whole).max()))
            out[rows] = whole.clip(0, WHITE)
        else:
            np.multiply(images[rows], scale, out=out[rows], dtype=np.uint8, casting="unsafe")
    return out, error


def _warnings(images: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Lines on stored images that are on a wrong scale, or show nothing."""
    low = min(array.min() for array in images.values())
    largest = sorted((int(array.max()), part) for part, array in images.items())
    high, brightest = largest[-1]
    if low == high:
        yield f"all pixels of all images are {high} of 0..255"
    elif high < DARK:
        yield (
            f"the largest pixel is {high} of 0..255: the images are nearly black; if they are stored on another scale, "
            f"multiply (images * {WHITE // high})"
        )
    elif 0 < largest[0][0] < DARK / 2:
        yield (
            f"the largest pixel is {largest[0][0]} in {largest[0][1]}_images and {high} in {brightest}_images: if they "
            "are stored on different scales, bring them to one"
        )
