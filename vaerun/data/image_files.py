"""The image files of a folder as arrays: which there are, their classes, and their pixels."""

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
"""By content, whatever a file is called: Pillow would hand others, such as EPS, to a program of the system's."""
MAXIMUM_PIXELS = 1 << 26  # of one image file, before it is shrunk, and of what it becomes
MAXIMUM_PATHS = 8  # to one folder: a set may well be linked to twice


def parse_size(image_size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Height and width."""
    if image_size is None:
        return None
    try:
        height, width = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
            if height * width > MAXIMUM_PIXELS:
                raise InputError(f"data.image_size={image_size}: an image has at most {MAXIMUM_PIXELS} pixels")
            return height, width
    except InputError:  # a ValueError too
        raise
    except (TypeError, ValueError):
        pass
    raise InputError(f"data.image_size={image_size}: expected a number of pixels, or two: [height, width]")


def walk_files(path: Path) -> Iterator[Path]:
    """All files below a folder, links followed.

    Raises InputError where links lead to one folder again and again: in a ring, or by two ways at each of many levels,
    which would take for ever.
    """
    ways: Counter[tuple[int, int]] = Counter()  # to each folder, by device and number
    for base, _, names in os.walk(path, followlinks=True):
        try:
            at = os.stat(base)
        except OSError:  # gone since
            continue
        ways[at.st_dev, at.st_ino] += 1
        if ways[at.st_dev, at.st_ino] > MAXIMUM_PATHS:
            raise InputError(
                f"{path}: links lead to {base} in more than {MAXIMUM_PATHS} ways, as in a ring: remove some"
            )
        yield from (Path(base, name) for name in names)


def list_image_files(path: Path) -> list[Path]:
    """The image files below a folder in natural order; hidden ones, such as macOS's `._1.png`, are left out."""
    found = [f for f in walk_files(path) if f.name.lower().endswith(IMAGE_FILES) and f.name[0] != "."]
    if not found:
        raise InputError(f"{path}: holds no image files ({' '.join(IMAGE_FILES)}); give the folder that does")
    return sorted(found, key=lambda file: [_natural(part) for part in file.relative_to(path).parts])


def _natural(name: str) -> tuple[list[str | int], str]:
    """A sorting key that takes runs of digits as numbers; the name itself decides between 1.png and 01.png."""
    # split puts text at even and digits at odd places, so that unlike things are never compared.
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))], name


def class_labels(files: list[Path], path: Path, known: list[str] | None = None) -> tuple[np.ndarray | None, list[str]]:
    """Labels int64 [N] (None where no file is in a subfolder) and the class names; `known` are the training part's."""
    flat = [file for file in files if file.parent == path]
    if flat and len(flat) < len(files):
        deep = next(file for file in files if file.parent != path)
        raise InputError(f"{path}: {flat[0]} is in no class subfolder but {deep} is; put all images in some, or none")
    found = [] if flat else [file.relative_to(path).parts[0] for file in files]
    names = sorted(set(found), key=_natural)
    if known is None:
        known = names
    elif set(names) - set(known) or (known and not names):
        odd = ", ".join(sorted(set(names) - set(known), key=_natural)[:3]) or "no class subfolders"
        raise InputError(f"{path}: has {odd}, unlike the training part ({', '.join(known[:10]) or 'no classes'})")
    index = {name: i for i, name in enumerate(known)}
    return (np.asarray([index[name] for name in found], dtype=np.int64) if found else None), known


def read_pixels(files: list[Path], size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """The pixels of image files, uint8 [N, channels, H, W].

    Raises InputError for files that are no images or differ in size, and where the pixels would be far more than the
    files hold: an image of one colour, or one that is enlarged, is a few bytes a million pixels.
    """
    images: np.ndarray | None = None
    for i, file in enumerate(files):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of metadata that are cut short
                pixels = _pixels(file, size, channels)
        # Pillow answers damage with OSError, SyntaxError, ValueError, struct.error and more.
        except Exception as error:
            why = printable(error, 200) or type(error).__name__
            raise InputError(f"{file}: cannot be read as an image ({why}); repair or remove it") from error
        if images is None:
            whole, held = len(files) * pixels.size, sum(_bytes(file) for file in files)
            if whole > max(DATA_BYTES, MAXIMUM_EXPANSION * held):
                raise InputError(
                    f"{len(files)} image files of {held} bytes would be {whole} bytes of pixels: give a smaller "
                    "data.image_size"
                )
            try:
                images = np.empty((len(files), *pixels.shape), dtype=np.uint8)
            except MemoryError as error:
                raise InputError(
                    f"{len(files)} images of the size of {file} do not fit into memory: give data.image_size"
                ) from error
        if pixels.shape != images.shape[1:]:
            (height, width), (other_height, other_width) = images.shape[2:], pixels.shape[1:]
            raise InputError(
                f"images differ in size: {files[0]} is {width}x{height} but {file} is {other_width}x{other_height} "
                "(width x height); give one size, e.g. data.image_size=32"
            )
        images[i] = pixels
    assert images is not None  # list_image_files raises where there are none
    return images


def _bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # reading it says so
        return 0


def _pixels(file: Path, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """One image file as uint8 [channels, H, W]."""
    from PIL import Image, ImageOps

    if not file.is_file():
        raise ValueError("it is no regular file")
    with Image.open(file, formats=FORMATS) as opened:
        if opened.width * opened.height > MAXIMUM_PIXELS:
            raise ValueError(f"{opened.width} x {opened.height} pixels are more than {MAXIMUM_PIXELS}")
        if opened.mode[0] in "IF":
            raise ValueError(f"pixels of mode {opened.mode} have more than 8 bits; convert it to 8 bits per channel")
        image: Image.Image = ImageOps.exif_transpose(opened)  # cameras store the rotation beside the pixels
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")  # dropping alpha instead would show colours that no viewer shows
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if channels == 1 else "RGB")
    if size is not None and image.size != size[::-1]:
        scale = min(image.height / size[0], image.width / size[1])
        height, width = (max(1, round(scale * length)) for length in size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        # Cropped first: resize(box=...) would let the filter reach beyond the crop.
        image = image.crop((left, top, left + width, top + height)).resize(size[::-1], Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
