"""The image files of a folder as arrays: the files, their classes and their pixels."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vaerun.errors import InputError
from vaerun.storage.npz import DATA_BYTES, MAXIMUM_EXPANSION
from vaerun.text import printable

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
"""By content, regardless of the file name; Pillow runs external programs for others, such as EPS."""
MAXIMUM_PIXELS = 1 << 26  # per image, before and after resizing
MAXIMUM_PATHS = 8  # to the same folder: some links to a folder are legitimate


def parse_size(image_size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """(height, width) from data.image_size; None stays None."""
    if image_size is None:
        return None
    try:
        height, width = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
            if height * width > MAXIMUM_PIXELS:
                raise InputError(f"data.image_size={image_size}: an image has at most {MAXIMUM_PIXELS} pixels")
            return height, width
    except InputError:  # which is a ValueError
        raise
    except (TypeError, ValueError):
        pass
    raise InputError(f"data.image_size={image_size}: expected a number of pixels or [height, width]")


def walk_files(path: Path) -> Iterator[Path]:
    """All files below a folder, following links.

    Raises InputError if links lead to the same folder again and again, in a cycle or by combinations of several links:
    the walk would not end.
    """
    visits: Counter[tuple[int, int]] = Counter()  # visits of each folder, by device and inode
    for base, _, names in os.walk(path, followlinks=True):
        try:
            status = os.stat(base)
        except OSError:  # deleted in the meantime
            continue
        visits[status.st_dev, status.st_ino] += 1
        if visits[status.st_dev, status.st_ino] > MAXIMUM_PATHS:
            raise InputError(
                f"{path}: links lead to {base} by more than {MAXIMUM_PATHS} paths, as in a cycle: remove some"
            )
        yield from (Path(base, name) for name in names)


def list_image_files(path: Path) -> list[Path]:
    """The image files below a folder in natural order, without hidden ones such as macOS's `._1.png`."""
    files = [f for f in walk_files(path) if f.name.lower().endswith(IMAGE_FILES) and f.name[0] != "."]
    if not files:
        raise InputError(
            f"{path}: no image files ({' '.join(IMAGE_FILES)}) found; set data.path to a folder with images"
        )
    return sorted(files, key=lambda file: [_natural(part) for part in file.relative_to(path).parts])


def _natural(name: str) -> tuple[list[str | int], str]:
    """A sort key that compares runs of digits as numbers; the name itself breaks ties, as of 1.png and 01.png."""
    # Text is at even indices and digits at odd ones, so that a string is never compared with a number.
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))], name


def class_labels(files: list[Path], path: Path, known: list[str] | None = None) -> tuple[np.ndarray | None, list[str]]:
    """Labels int64 [N] (None if no file is in a subfolder) and the class names; `known`: those of the training part."""
    top_level = [file for file in files if file.parent == path]
    if top_level and len(top_level) < len(files):
        nested = next(file for file in files if file.parent != path)
        raise InputError(
            f"{path}: {top_level[0]} is in no class subfolder but {nested} is: put all images into subfolders, or none"
        )
    file_classes = [] if top_level else [file.relative_to(path).parts[0] for file in files]
    names = sorted(set(file_classes), key=_natural)
    if known is None:
        known = names
    elif set(names) - set(known) or (known and not names):
        extra = ", ".join(sorted(set(names) - set(known), key=_natural)[:3]) or "no class subfolders"
        raise InputError(f"{path}: has {extra}, unlike the training part ({', '.join(known[:10]) or 'no classes'})")
    index = {name: i for i, name in enumerate(known)}
    return (np.asarray([index[name] for name in file_classes], dtype=np.int64) if file_classes else None), known


def read_pixels(files: list[Path], size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """The pixels of image files, uint8 [N, channels, H, W].

    Raises InputError for files that are not images or differ in size, and if the pixels would take far more memory than
    the files: an image of a single colour, or an enlarged one, can have a million pixels in a few bytes.
    """
    images: np.ndarray | None = None
    for i, file in enumerate(files):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about truncated metadata
                pixels = _pixels(file, size, channels)
        # For damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error and others.
        except Exception as error:
            reason = printable(error, 200) or type(error).__name__
            raise InputError(f"{file}: cannot be read as an image ({reason}); repair or remove it") from error
        if images is None:
            array_bytes, file_bytes = len(files) * pixels.size, sum(_bytes(file) for file in files)
            if array_bytes > max(DATA_BYTES, MAXIMUM_EXPANSION * file_bytes):
                raise InputError(
                    f"{len(files)} image files of {file_bytes} bytes would take {array_bytes} bytes of pixels: set a "
                    "smaller data.image_size"
                )
            try:
                images = np.empty((len(files), *pixels.shape), dtype=np.uint8)
            except MemoryError as error:
                raise InputError(
                    f"{len(files)} images of the size of {file} do not fit into memory: set data.image_size"
                ) from error
        if pixels.shape != images.shape[1:]:
            (height, width), (other_height, other_width) = images.shape[2:], pixels.shape[1:]
            raise InputError(
                f"images differ in size: {files[0]} is {width}x{height} but {file} is {other_width}x{other_height} "
                "(width x height): set a common size, e.g. data.image_size=32"
            )
        images[i] = pixels
    assert images is not None  # list_image_files raises if there are none
    return images


def _bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # reported when it is read
        return 0


def _pixels(file: Path, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """One image file as uint8 [channels, H, W]."""
    from PIL import Image, ImageOps

    if not file.is_file():
        raise ValueError("it is not a regular file")
    with Image.open(file, formats=FORMATS) as opened:
        if opened.width * opened.height > MAXIMUM_PIXELS:
            raise ValueError(f"{opened.width} x {opened.height} pixels exceed the maximum of {MAXIMUM_PIXELS}")
        if opened.mode[0] in "IF":
            raise ValueError(f"pixels of mode {opened.mode} have more than 8 bits; convert it to 8 bits per channel")
        image: Image.Image = ImageOps.exif_transpose(opened)  # cameras store the rotation as metadata
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")  # dropping alpha would reveal colours that no viewer shows
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if channels == 1 else "RGB")
    if size is not None and image.size != size[::-1]:
        scale = min(image.height / size[0], image.width / size[1])
        height, width = (max(1, round(scale * length)) for length in size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        # Crop first: with resize(box=...) the filter reaches beyond the crop.
        image = image.crop((left, top, left + width, top + height)).resize(size[::-1], Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
