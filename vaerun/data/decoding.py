"""The pixels of image files."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from vaerun.data.image_files import count_of
from vaerun.errors import InputError
from vaerun.storage.npz import DATA_BYTES, MAXIMUM_EXPANSION
from vaerun.text import printable

if TYPE_CHECKING:
    from PIL import Image, ImageFile

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF", "GIF", "AVIF")
"""By content, regardless of the file name; Pillow runs external programs for others, such as EPS."""
MAXIMUM_PIXELS = 1 << 26  # of an image in the data set; larger files are reduced while they are read
MAXIMUM_FILE_PIXELS = 178_956_970  # of a file, at most 4 bytes each (0.7 GiB): Pillow's limit against bombs
REDUCTION = 3
"""Large images are first averaged over blocks to this multiple of their size in the data set: as good as one filter."""

ORIENTATION = 0x0112  # tag of Exif and TIFF; from 5 on, width and height are exchanged

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for each number of channels."""


@dataclass
class Decoded:
    """Images of files.

    Attributes:
        images: uint8 [N, channels, H, W].
        notes, warnings: see `Arrays`.
    """

    images: np.ndarray
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


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


def check_channels(channels: int | None) -> None:
    """Raise InputError for a number of channels that image files cannot have."""
    if channels is not None and channels not in MODES:
        raise InputError(
            f"data.channels={channels}: expected 1 (grey), 2 (grey and alpha), 3 (RGB), 4 (RGBA) or null (as the files "
            "have them)"
        )


def read_pixels(files: Sequence[Path], size: tuple[int, int] | None, channels: int | None) -> Decoded:
    """The pixels of image files; see `read_images`."""
    named = ((str(file), file) for file in files)
    return read_images(named, len(files), sum(_bytes(file) for file in files), size, channels)


def read_images(
    files: Iterable[tuple[str, Path | BinaryIO]],
    count: int,
    file_bytes: int,
    size: tuple[int, int] | None,
    channels: int | None,
) -> Decoded:
    """The pixels of image files, with as many channels as the first file has if `channels` is None.

    Arguments:
        files: what to call each file in messages, and its path or content.
        count, file_bytes: number of files, and the bytes that they take together; at least one file.
        size: (height, width) to crop and resize to; None: all images have the same.
        channels: see `check_channels`.

    Raises InputError for files that are not images or differ in size or channels, and if the pixels would take far more
    memory than the files: an image of a single colour, or an enlarged one, can have a million pixels in a few bytes.
    """
    images: np.ndarray | None = None
    facts: Counter[str] = Counter()
    first = ""
    for i, (name, file) in enumerate(files):
        pixels = _read_file(name, file, size, channels, facts)
        if images is None:
            images, first = _allocate(name, count, file_bytes, pixels), name
        if pixels.shape[1:] != images.shape[2:]:
            (height, width), (other_height, other_width) = images.shape[2:], pixels.shape[1:]
            raise InputError(
                f"images differ in size: {first} is {width}x{height} but {name} is {other_width}x{other_height} "
                "(width x height): set a common size, e.g. data.image_size=32"
            )
        if len(pixels) != images.shape[1]:
            raise InputError(
                f"images differ in channels: {first} has {images.shape[1]} but {name} has {len(pixels)}: set "
                "data.channels=3 for colour, or 1 for grey"
            )
        images[i] = pixels
    assert images is not None  # there is at least one file
    return Decoded(images, _notes(facts), _warnings(images))


def _allocate(name: str, count: int, file_bytes: int, first: np.ndarray) -> np.ndarray:
    """Room for as many images of the shape of the first one, which has this name."""
    array_bytes = count * first.size
    if array_bytes > max(DATA_BYTES, MAXIMUM_EXPANSION * file_bytes):
        raise InputError(
            f"{count} image files of {file_bytes} bytes would take {array_bytes} bytes of pixels: set a smaller "
            "data.image_size"
        )
    try:
        return np.empty((count, *first.shape), dtype=np.uint8)
    except MemoryError as error:
        raise InputError(
            f"{count} images of the size of {name} do not fit into memory: set a smaller data.image_size"
        ) from error


def _bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # reported when it is read
        return 0


@cache
def _formats() -> tuple[str, ...]:
    """FORMATS that Pillow has."""
    return FORMATS if find_spec("PIL._avif") else tuple(name for name in FORMATS if name != "AVIF")


def _read_file(
    name: str, file: Path | BinaryIO, size: tuple[int, int] | None, channels: int | None, facts: Counter[str]
) -> np.ndarray:
    """One image file as uint8 [channels, H, W]; what is to be said about it is counted in `facts`."""
    from PIL import Image, UnidentifiedImageError

    try:
        if isinstance(file, Path) and not file.is_file():
            raise ValueError("it is a link without a target" if file.is_symlink() else "it is not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about truncated metadata and large images
            with Image.open(file, formats=_formats()) as opened:
                return _pixels(opened, name, size, channels, facts)
    except (InputError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{name}: more than {MAXIMUM_FILE_PIXELS} pixels, the most that a file may have: shrink it first with "
            "another program"
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name}: cannot be read as an image (its content is none of {', '.join(_formats())}): convert, repair or "
            "remove it"
        ) from error
    # For damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error and others.
    except Exception as error:
        reason = printable(error, 200) or type(error).__name__
        raise InputError(f"{name}: cannot be read as an image ({reason}); repair or remove it") from error


def _pixels(
    opened: ImageFile.ImageFile, name: str, size: tuple[int, int] | None, channels: int | None, facts: Counter[str]
) -> np.ndarray:
    """See `_read_file`."""
    from PIL import Image, ImageOps

    count = opened.width * opened.height
    if count > MAXIMUM_FILE_PIXELS:
        raise Image.DecompressionBombError
    if count > MAXIMUM_PIXELS and size is None:
        raise InputError(
            f"{name}: {opened.width} x {opened.height} pixels are too many for a model: set the size to which images "
            "are shrunk while they are read, e.g. data.image_size=64"
        )
    if opened.format == "TIFF" and opened.getexif().get(ORIENTATION, 1) >= 5 and opened.tile[0][0] == "raw":
        raise InputError(
            f"{name}: an uncompressed TIFF that is to be shown turned by a quarter, which Pillow misreads: save it "
            "upright or compressed"
        )
    # The further pictures of a camera's MPO are previews and depth, no pages.
    frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
    if frames > 1:
        facts["files with frames"] += 1
        facts["frames"] += frames - 1
    if count > MAXIMUM_PIXELS and size is not None:
        opened.draft(None, (REDUCTION * max(size), REDUCTION * max(size)))  # JPEG: decodes fewer pixels
    ImageOps.exif_transpose(opened, in_place=True)  # cameras store the rotation as metadata
    image = _plain(_as_bytes(opened, name, facts))
    if count > MAXIMUM_PIXELS and size is not None:
        block = max(1, min(image.size) // (REDUCTION * max(size)))
        left, top = image.width % block // 2, image.height % block // 2
        # Only whole blocks, without which the picture would be stretched.
        box = (left, top, left + image.width // block * block, top + image.height // block * block)
        image = image.reduce(block, box)
        facts["reduced"] += 1
    image = _to_channels(image, channels, facts)
    if size is not None and image.size != size[::-1]:
        scale = min(image.height / size[0], image.width / size[1])
        height, width = (max(1, round(scale * length)) for length in size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        # Crop first: with resize(box=...) the filter reaches beyond the crop.
        image = image.crop((left, top, left + width, top + height)).resize(size[::-1], Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _as_bytes(image: Image.Image, name: str, facts: Counter[str]) -> Image.Image:
    """An image of 8 bits per channel; 16 bits of grey are divided by 257."""
    from PIL import Image

    if image.mode[0] not in "IF":
        return image
    # Pillow keeps the 16 bits of PNG and PGM in 32, depending on its version.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise InputError(f"{name}: its pixels have 32 bits (mode {image.mode}): convert the images to 8 or 16 bits")
    facts["16 bits"] += 1
    levels = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8))


def _plain(image: Image.Image) -> Image.Image:
    """The image in one of MODES, with its transparency, without palette."""
    if image.mode in ("LA", "RGBA"):
        return image
    if image.mode in ("La", "PA", "RGBa") or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _to_channels(image: Image.Image, channels: int | None, facts: Counter[str]) -> Image.Image:
    """An image in one of MODES as one of this number of channels; None: as it is."""
    from PIL import Image

    if channels is None:
        return image
    if channels in (1, 3) and image.mode in ("LA", "RGBA"):
        facts["transparent"] += bool((np.asarray(image.getchannel("A")) < 255).any())
        image = image.convert("RGBA")  # dropping alpha would reveal colours that no viewer shows
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # One coloured image suffices for the note.
    if channels <= 2 and image.mode in ("RGB", "RGBA") and not facts["colours made grey"]:
        facts["colours made grey"] += not _is_grey(np.asarray(image).transpose(2, 0, 1)[None])
    return image.convert(MODES[channels])


def _is_grey(images: np.ndarray) -> bool:
    """Whether red, green and blue are the same in all pixels of images [N, C, H, W]."""
    return all(bool((image[1:3] == image[0]).all()) for image in images)  # stops at the first that is not


def _notes(facts: Counter[str]) -> list[str]:
    """See `Arrays`."""
    notes = []
    if facts["frames"]:
        files = count_of(facts["files with frames"], "file")
        notes.append(f"pages or frames after the first left out: {facts['frames']} in {files}")
    if facts["reduced"]:
        notes.append(f"{count_of(facts['reduced'], 'image')} of more than {MAXIMUM_PIXELS} pixels reduced")
    if facts["16 bits"]:
        notes.append(f"grey levels of 16 bits divided by 257 in {count_of(facts['16 bits'], 'image')}")
    if facts["transparent"]:
        notes.append(f"{count_of(facts['transparent'], 'transparent image')} laid on white")
    if facts["colours made grey"]:
        notes.append("colours made grey (data.channels=3 keeps them)")
    return notes


def _warnings(images: np.ndarray) -> list[str]:
    """See `Arrays`."""
    channels = images.shape[1]
    grey = channels <= 2 or _is_grey(images)
    opaque = channels in (1, 3) or bool((images[:, -1] == 255).all())
    needed = (1 if grey else 3) + (not opaque)
    if needed == channels:
        return []
    facts = {"grey": grey and channels > 2, "opaque": opaque and channels in (2, 4)}
    return [
        f"all images are {' and '.join(word for word, true in facts.items() if true)}: {needed} of their {channels} "
        f"channels would do, and nats count the others, too; set data.channels={needed}"
    ]
