"""Images of any usual form as uint8 [N, C, H, W]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vaerun.errors import InputError


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


def to_uint8(parts: Mapping[str, np.ndarray], where: str) -> Pixels:
    """Convert the images of all parts together, so that they share one scale and one layout.

    [N, H, W] images get C = 1. Raises InputError for wrong dtypes, ranks and numbers of channels, and empty arrays.
    """
    return Pixels({part: _check_images(images, f"{where}: {part}_images") for part, images in parts.items()})


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
