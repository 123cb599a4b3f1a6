"""Pixels of image files: formats, sizes, channels, depths, pages, and images of more pixels than a model has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vaerun.data import decoding
from vaerun.data.decoding import Decoded, check_channels, parse_size, read_pixels
from vaerun.data.image_files import list_images, readable_suffixes
from vaerun.errors import InputError

COLOURS = np.random.RandomState(0).randint(0, 256, (3, 4, 5, 4)).astype(np.uint8)
GREY = COLOURS[..., 0]


def write(folder: Path, *images: np.ndarray, suffix: str = ".png", **options: Any) -> list[Path]:
    files = [folder / f"{i}{suffix}" for i in range(len(images))]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file, **options)
    return files


def decode(folder: Path, *images: np.ndarray, channels: int | None, size: tuple[int, int] | None = None) -> Decoded:
    return read_pixels(write(folder, *images), size, channels)


KINDS = {".png": "png", ".apng": "png", ".bmp": "bmp", ".webp": "webp", ".ppm": "ppm", ".pgm": "ppm", ".pnm": "ppm"}
KINDS |= {".tif": "tiff", ".TIFF": "tiff", ".gif": "gif", ".jfif": "jpeg", ".jpe": "jpeg", ".avif": "avif"}


@pytest.mark.parametrize(("suffix", "kind"), KINDS.items())
def test_formats(tmp_path: Path, suffix: str, kind: str) -> None:
    """A grey image is read as it was written, except for losses of JPEG and AVIF."""
    if suffix not in {s for name in readable_suffixes() for s in (name, name.upper())}:
        pytest.skip("this Pillow reads no AVIF")
    options = {"lossless": True} if kind == "webp" else {"quality": 100}
    flat = np.repeat(GREY[0].reshape(20, 1)[:2], 256, axis=0).reshape(32, 16)
    files = write(tmp_path, flat, suffix=suffix, format=kind, **options)
    assert list_images(tmp_path).images == [(f"0{suffix}",)]
    decoded = read_pixels(files, None, 1)
    loss = 2 if kind in ("jpeg", "avif") else 0
    assert np.abs(decoded.images[0, 0].astype(int) - flat).max() <= loss
    assert decoded.notes == decoded.warnings == []


@pytest.mark.parametrize("kind", ["gif", "tiff", "png", "webp"])
def test_the_first_page_or_frame_is_read(tmp_path: Path, kind: str) -> None:
    first, *rest = (Image.fromarray(image) for image in GREY)
    options = {"lossless": True} if kind == "webp" else {}
    first.save(tmp_path / f"a.{kind}", save_all=True, append_images=rest, **options)
    decoded = read_pixels([tmp_path / f"a.{kind}"], None, 1)
    np.testing.assert_array_equal(decoded.images[0, 0], GREY[0])
    assert decoded.notes == ["pages or frames after the first left out: 2 in 1 file"]


def test_channels(tmp_path: Path) -> None:
    solid = COLOURS.copy()
    solid[..., 3] = 255
    four = decode(tmp_path, *COLOURS, channels=4)
    np.testing.assert_array_equal(four.images, COLOURS.transpose(0, 3, 1, 2))
    assert four.notes == four.warnings == []
    three = decode(tmp_path, *solid, channels=3)
    np.testing.assert_array_equal(three.images, solid.transpose(0, 3, 1, 2)[:, :3])
    assert three.notes == three.warnings == []
    one = decode(tmp_path, *COLOURS[..., :3], channels=1)
    luma = COLOURS[..., :3] @ [0.299, 0.587, 0.114]
    assert np.abs(one.images[:, 0] - luma).max() <= 0.51
    assert one.notes == ["colours made grey (data.channels=3 keeps them)"]


@pytest.mark.parametrize(("last", "channels"), [(0, 1), (3, 3), (4, 4)])
def test_channels_as_the_files_have_them(tmp_path: Path, last: int, channels: int) -> None:
    images = COLOURS[..., :last] if last else GREY
    decoded = decode(tmp_path, *images, channels=None)
    np.testing.assert_array_equal(decoded.images, images.reshape(3, 4, 5, channels).transpose(0, 3, 1, 2))


def test_channels_that_differ(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0.png has 1 but .*1.png has 3: set data.channels=3"):
        decode(tmp_path, GREY[0], COLOURS[1, ..., :3], channels=None)
    assert decode(tmp_path, GREY[0], COLOURS[1, ..., :3], channels=3).images.shape == (2, 3, 4, 5)


@pytest.mark.parametrize("channels", [0, 5, -1])
def test_channels_that_no_file_has(channels: int) -> None:
    with pytest.raises(InputError, match=f"data.channels={channels}: expected 1"):
        check_channels(channels)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    decoded = decode(tmp_path, np.zeros((2, 2, 4), np.uint8), channels=3)
    assert (decoded.images == 255).all()
    assert decoded.notes == ["1 transparent image laid on white"]


def test_channels_without_content_are_warned_of(tmp_path: Path) -> None:
    """And the advice is right: with it nothing is left to say."""
    opaque, grey = COLOURS.copy(), COLOURS.copy()
    opaque[..., 3] = 255
    grey[..., :3] = grey[..., :1]
    for images, channels, advised in (
        (grey[..., :3], 3, 1), (GREY, 3, 1), (GREY, 4, 1), (GREY, 2, 1), (opaque, 4, 3), (grey, 4, 2)
    ):  # fmt: skip
        (warning,) = decode(tmp_path, *images, channels=channels).warnings
        assert warning.endswith(f"set data.channels={advised}")
        followed = decode(tmp_path, *images, channels=advised)
        assert followed.warnings == followed.notes == []
    grey[0, 0, 0, 0] ^= 1  # one pixel of one image
    assert decode(tmp_path, *grey[..., :3], channels=3).warnings == []


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_grey_levels_of_16_bits(tmp_path: Path, suffix: str) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    decoded = read_pixels(write(tmp_path, levels, suffix=suffix), None, 1)
    np.testing.assert_array_equal(decoded.images[0, 0], np.round(levels / 257))
    assert decoded.notes == ["grey levels of 16 bits divided by 257 in 1 image"]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_32_bits_are_refused(tmp_path: Path, dtype: Any) -> None:
    with pytest.raises(InputError, match=r"0\.tif: its pixels have 32 bits .*: convert the images to 8 or 16 bits"):
        read_pixels(write(tmp_path, GREY[0].astype(dtype), suffix=".tif"), None, 1)


def test_the_centre_is_cropped(tmp_path: Path) -> None:
    wide = np.zeros((4, 8), np.uint8)
    wide[:, 2:6] = 200
    assert (decode(tmp_path, wide, channels=1, size=(2, 2)).images == 200).all()
    assert decode(tmp_path, wide, channels=1, size=(2, 3)).images.shape == (1, 1, 2, 3)


def test_sizes_that_differ(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0.png is 5x4 but .*1.png is 4x4 .*data.image_size=32"):
        decode(tmp_path, GREY[0], GREY[1, :, :4], channels=1)
    assert decode(tmp_path, GREY[0], GREY[1, :, :4], channels=1, size=(32, 32)).images.shape == (2, 1, 32, 32)


@pytest.mark.parametrize("size", [0, -1, "x", [1, 2, 3], [2.5, 2]])
def test_sizes_that_are_none(size: Any) -> None:
    with pytest.raises(InputError, match=r"data.image_size=.*: expected a number of pixels or \[height, width\]"):
        parse_size(size)


def test_a_damaged_file(tmp_path: Path) -> None:
    (file,) = write(tmp_path, GREY[0])
    for content, words in ((file.read_bytes()[:60], "repair or remove it"), (b"RIFF", "convert, repair or remove it")):
        file.write_bytes(content)
        with pytest.raises(InputError, match=rf"0\.png: cannot be read as an image \(.*\).*{words}"):
            read_pixels([file], None, 1)


LOSSLESS: dict[str, dict[str, Any]] = {".png": {}, ".tif": {"compression": "tiff_lzw"}, ".jpg": {"quality": 100}}


def rotated(folder: Path, image: Image.Image, suffix: str, **options: Any) -> Path:
    """An image file that is to be shown turned by a quarter to the left, as its metadata say."""
    exif = Image.Exif()
    exif[0x0112] = 8
    image.save(folder / f"rotated{suffix}", exif=exif, **options)
    return folder / f"rotated{suffix}"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_large_images_are_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, suffix: str) -> None:
    """The result is that of one filter, up to rounding; and orientation and cropping stay."""
    if suffix == ".jpg" and mode not in ("L", "RGB"):
        pytest.skip("not a mode of JPEG")
    rows, columns = np.mgrid[:180, :320] / 320
    levels = (255 * (0.2 + 0.5 * columns + 0.3 * rows)).astype(np.uint8)
    smooth = Image.fromarray(levels)
    image = Image.fromarray(levels.astype(np.uint16) * 257) if mode == "I;16" else smooth.convert(mode)
    file = rotated(tmp_path, image, suffix, **LOSSLESS[suffix])
    whole = read_pixels([file], (8, 6), 1)
    monkeypatch.setattr(decoding, "MAXIMUM_PIXELS", 180 * 320 - 1)
    reduced = read_pixels([file], (8, 6), 1)
    assert reduced.images.shape == (1, 1, 8, 6)
    assert np.abs(reduced.images.astype(int) - whole.images).max() <= (20 if mode == "1" else 3)
    assert whole.images.std() > 20  # a turned or mirrored picture would differ
    assert reduced.notes[0] == f"1 image of more than {180 * 320 - 1} pixels reduced"
    with pytest.raises(InputError, match=r"\d+ x \d+ pixels are too many .* e\.g\. data\.image_size=64"):
        read_pixels([file], None, 1)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_rotation_by_metadata(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(np.arange(0, 256, 2, dtype=np.uint8).reshape(8, 16))
    file = rotated(tmp_path, image, suffix, **LOSSLESS[suffix])
    shown = np.rot90(np.asarray(image))
    assert np.abs(read_pixels([file], None, 1).images[0, 0].astype(int) - shown).max() <= 2
    if suffix == ".tif":
        file = rotated(tmp_path, image, suffix)
        with pytest.raises(InputError, match=r"rotated\.tif: an uncompressed TIFF .*: save it upright or compressed"):
            read_pixels([file], None, 1)


def test_images_beyond_any_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write(tmp_path, GREY[0])
    for limit in (19, 9):  # below 20 pixels; Pillow raises by itself at twice its own limit
        monkeypatch.setattr(decoding, "MAXIMUM_FILE_PIXELS", limit)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(InputError, match=rf"0\.png: more than {limit} pixels.*: shrink it first"):
            read_pixels(files, (2, 2), 1)
