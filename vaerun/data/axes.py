"""The order of an image array's axes: [N, C, H, W] from any usual one.

Taken as they are: [N, C, H, W] and [N, H, W]. Recognised: channels last, as TensorFlow and matplotlib have them, and
images last, as MATLAB has them. Where an array could be read in two ways, the user is asked.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vaerun.errors import InputError

FEW = 4  # channels of images that people look at: grey, grey and a mask, RGB, RGB and a mask
SIDE = 8  # smaller images could be anything
MAXIMUM_CHANNELS = 64  # of images of which neither side tells that they are images
FORMS = "expected [N, C, H, W] or [N, H, W]"


def to_nchw(
    parts: Mapping[str, np.ndarray], label_shapes: Mapping[str, tuple[int, ...]], where: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Views of the images of all parts as [N, C, H, W], and notes on what was recognised.

    Arguments:
        parts: images of each part, in any form.
        label_shapes: shapes of the labels of the parts that have some, which tell how many images there are.
        where: prefix of error messages.

    Raises InputError for shapes that are no images, are empty, or could be read in two ways.
    """
    for part, images in parts.items():
        _check_rank(images, label_shapes.get(part, ()), f"{where}: {part}_images")
    images_last = _images_last(parts, label_shapes)
    views, orders = dict[str, np.ndarray](), dict[str, list[str]]()
    for part, images in parts.items():
        view = np.moveaxis(images, -1, 0) if images_last else images
        views[part], channels_last = _channels_first(view, images, images_last is not None, f"{where}: {part}_images")
        if images_last or channels_last:
            axes = ["H", "W"] if images.ndim == 3 else ["H", "W", "C"] if channels_last else ["C", "H", "W"]
            axes.insert(len(axes) if images_last else 0, "N")
            orders.setdefault(", ".join(axes), []).append(f"{part}_images")
    return views, [f"{' and '.join(names)} read as [{order}]" for order, names in orders.items()]


def _check_rank(images: np.ndarray, label_shape: tuple[int, ...], where: str) -> None:
    shape = list(images.shape)
    if images.size == 0:
        raise InputError(f"{where}: shape is {shape}, which is empty; at least one image is needed")
    if images.ndim == 2:
        transposed = shape[0] not in label_shape and shape[1] in label_shape
        vectors, size = ("images.T", shape[0]) if transposed else ("images", shape[1])
        raise InputError(
            f"{where}: shape is {shape}, which is vectors; {FORMS}: store {vectors}.reshape(-1, {_image_shape(size)})"
        )
    if images.ndim not in (3, 4):
        raise InputError(f"{where}: shape is {shape}; {FORMS}")


def _image_shape(size: int) -> str:
    """The likeliest C, H, W of images of this many pixels."""
    for channels in (1, 3):
        side = round((size / channels) ** 0.5)
        if channels * side**2 == size:
            return f"{channels}, {side}, {side}"
    return "C, H, W"


def _images_last(parts: Mapping[str, np.ndarray], label_shapes: Mapping[str, tuple[int, ...]]) -> bool | None:
    """Whether the last axis counts the images, as labels or a second part tell; None: nothing tells."""
    labelled = [(images.shape, label_shapes.get(part, ())) for part, images in parts.items()]
    if any(shape[0] in counts for shape, counts in labelled):
        return False
    if any(shape[-1] in counts for shape, counts in labelled):
        return True
    shapes = [images.shape for images in parts.values()]
    if len({shape[1:] for shape in shapes}) == 1 < len({shape[0] for shape in shapes}):
        return False
    height, width, *_ = shapes[0]  # by which [H, W, N] differs from [N, H, W] of two parts with different widths
    most = max(shape[-1] for shape in shapes)
    if len({shape[:-1] for shape in shapes}) == 1 < len({shape[-1] for shape in shapes}):
        return True if most > max(height, width) and min(height, width) >= SIDE else None
    return None


def _channels_first(view: np.ndarray, images: np.ndarray, certain: bool, where: str) -> tuple[np.ndarray, bool]:
    """[N, C, H, W] from a view of the images whose first axis counts them, and whether the channels were last.

    `certain`: something tells that the first axis counts them; else a view that looks as if another one did is asked
    about.
    """
    channels_last = view.ndim == 4 and view.shape[1] > FEW and view.shape[3] == 1
    if view.ndim == 4 and not channels_last:
        return _colour(view, images, where)
    grey = view[..., 0] if channels_last else view
    n, height, width = grey.shape
    if not certain and n > 1 and height != width and (n == height or n < min(height, width)):
        raise InputError(
            f"{where}: the order of the axes of {list(images.shape)} is not clear: if they are [H, W, N], store "
            f"np.moveaxis(images, 2, 0); if they are {n} images of {height}x{width} (height x width), store "
            f"images.reshape({n}, 1, {height}, {width})"
        )
    return grey[:, None], channels_last


def _colour(view: np.ndarray, images: np.ndarray, where: str) -> tuple[np.ndarray, bool]:
    """[N, C, H, W] from [N, C, H, W] or [N, H, W, C], and whether the channels were last."""
    _, a, b, c = view.shape
    either = a in (2, FEW) and c <= FEW < b
    if not either and (a <= FEW or (a <= MAXIMUM_CHANNELS and a < min(b, c)) or b == c):
        return view, False
    if a > FEW and ((c <= FEW and min(a, b) >= SIDE) or c < a == b):
        return np.moveaxis(view, 3, 1), True
    line = f"{where}: shape {list(images.shape)} as [N, C, H, W] has {a} channels of {b}x{c} pixels; "
    if view is images and b <= FEW:
        raise InputError(f"{line}if it is [H, W, C, N], store images.transpose(3, 2, 0, 1)")
    raise InputError(f"{line}if it is [N, H, W, C], store images.transpose(0, 3, 1, 2)")
