"""Scales and axes of images: what is stored and said; whoever follows the advice of a refusal succeeds."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from vaerun.data import pixels as module
from vaerun.data.axes import to_nchw
from vaerun.data.pixels import to_uint8
from vaerun.errors import InputError

RNG = np.random.RandomState(0)
GREY = RNG.randint(0, 256, (20, 1, 8, 9)).astype(np.uint8)
GREY.flat[:2] = 0, 255
BINARY = (GREY > 127).astype(np.uint8)
NOTE = "pixels of 0 and 1 (the largest of 0..255 is 1) read as binary images, 0 and 255"


def stored(images: np.ndarray, **parts: np.ndarray) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    pixels = to_uint8({"train": images, **parts}, "file")
    for array in pixels.images.values():
        assert array.dtype == np.uint8
        assert array.flags.c_contiguous
    return pixels.images["train"], pixels.notes, pixels.warnings


def refusal(images: np.ndarray, **parts: np.ndarray) -> str:
    with pytest.raises(InputError) as caught:
        to_uint8({"train": images, **parts}, "file")
    message = str(caught.value)
    assert message.startswith("file: ")
    assert "\n" not in message
    return message


def followed(message: str, images: np.ndarray) -> np.ndarray:
    """The images as the message tells to store them."""
    expression = re.search(r"store (.*?)( in all parts| \(or|; if|$)", message)
    assert expression, message
    return eval(expression[1], {"np": np, "images": images, "float": float})


# -- scales -----------------------------------------------------------------------------------------------------------


def test_bytes_stay_as_they_are() -> None:
    images, notes, warnings = stored(GREY)
    assert images is GREY
    assert (notes, warnings) == ((), ())


@pytest.mark.parametrize("dtype", [bool, "u1", "i1", "u2", "i4", "i8", "u8", "f2", "f4", "f8", ">f4", ">u2"])
def test_0_and_1_are_binary_images(dtype: Any) -> None:
    images, notes, warnings = stored(BINARY.astype(dtype))
    np.testing.assert_array_equal(images, BINARY * 255)
    assert (notes, warnings) == ((NOTE,), ())


@pytest.mark.parametrize("dtype", ["u2", "i2", "i4", "i8", "u8", ">u2"])
def test_integers_within_0_and_255(dtype: str) -> None:
    images, notes, _ = stored(GREY.astype(dtype))
    np.testing.assert_array_equal(images, GREY)
    assert notes == ()


@pytest.mark.parametrize(
    ("images", "expected", "note"),
    [
        (GREY / 255, GREY, "float64 pixels in 0..1 multiplied by 255, exact"),
        ((GREY / 255).astype("f4"), GREY, "float32 pixels in 0..1 multiplied by 255, exact"),
        ((GREY / 255).astype("f2"), GREY, "float16 pixels in 0..1 multiplied by 255, rounded (by 0.06 of 255 at most)"),
        ((GREY / 255).astype("f4") * np.float32(1 + 3e-7), GREY, "float32 pixels in 0..1 multiplied by 255, exact"),
        (GREY.astype("f4"), GREY, "float32 pixels taken as 0..255, exact"),
        (GREY * 0.998, np.rint(GREY * 0.998), "float64 pixels taken as 0..255, rounded (by 0.50 of 255 at most)"),
    ],
)
def test_floats(images: np.ndarray, expected: np.ndarray, note: str) -> None:
    got, notes, warnings = stored(images)
    np.testing.assert_array_equal(got, expected)
    assert (notes, warnings) == ((note,), ())


def test_the_largest_rounding_error_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)  # an image at a time
    images = GREY / 255
    images[7, 0, 0, 0] = 100.25 / 255
    assert stored(images)[1] == ("float64 pixels in 0..1 multiplied by 255, rounded (by 0.25 of 255 at most)",)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (GREY / 127.5 - 1, "the pixels are in -1..1;"),
        ((GREY / 127.5 - 1).astype("f4"), "the pixels are in -1..1;"),
        (GREY / 255 - 0.5, "the pixels are in -0.5..0.5;"),
        (GREY.astype(int) - 128, "the pixels are in -128..127;"),
        (GREY.view(np.int8) // 1, "the pixels are in -128..127;"),
        (BINARY.astype(int) * 2 - 1, "the pixels are in -1..1;"),
        ((GREY - GREY.mean()) / GREY.std(), "expected 0..255, 0..1, or 0 and 1"),
        (GREY.astype(int) * 257, "the pixels are in 0..65535;"),
        (GREY.astype(np.uint16) * 16, "the pixels are in 0..4080;"),
        (GREY / 255 * 1.06 - 0.03, "the pixels are in -0.03..1.03;"),
        (GREY * 1.06 - 5, "the pixels are in -5..265.3;"),
        (GREY / GREY.std(), "the pixels are fractional and in 0..3."),
        (GREY / 16, "the pixels are fractional and in 0..15.9375;"),
        (GREY * 1e4, "the pixels are in 0..2.55e+06;"),
    ],
)
def test_other_scales_are_refused_and_the_advice_works(images: np.ndarray, words: str) -> None:
    message = refusal(images)
    assert words in message
    again = followed(message, images)
    got, _, warnings = stored(again)
    assert warnings == ()
    assert np.corrcoef(got.ravel(), images.ravel())[0, 1] > 0.99  # still the same images
    assert int(got.max()) - int(got.min()) >= 200


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "inf")])
def test_values_that_are_not_finite(value: float, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 3 * 72 * 4)
    images = GREY.astype("f4")
    images[13, 0, 2, 2] = value
    assert f"train_images: image 13 has {word}" in refusal(images)


@pytest.mark.parametrize(("other", "kind"), [(BINARY, "u1"), (BINARY > 0, "bool"), (GREY / 255, "f8")])
def test_parts_on_different_scales(other: np.ndarray, kind: str) -> None:
    for parts in ({"train": other, "test": GREY}, {"train": GREY, "test": other}):
        message = refusal(parts["train"], test=parts["test"])
        small = "train" if parts["train"] is other else "test"
        assert f"store {small}_images * 255" in message
        parts[small] = parts[small] * 255
        assert stored(parts["train"], test=parts["test"])[2] == ()


def test_a_black_part_tells_nothing_of_its_scale() -> None:
    black = np.zeros_like(GREY)
    np.testing.assert_array_equal(stored(GREY, test=black)[0], GREY)
    np.testing.assert_array_equal(stored(BINARY, test=black)[0], BINARY * 255)
    np.testing.assert_array_equal(stored(black, test=BINARY)[0], black)


def test_binary_and_fractional_parts_share_a_scale() -> None:
    pixels = to_uint8({"train": GREY / 255, "test": BINARY}, "file")
    np.testing.assert_array_equal(pixels.images["train"], GREY)
    np.testing.assert_array_equal(pixels.images["test"], BINARY * 255)


def test_nearly_black_images_are_told_of_and_the_advice_works() -> None:
    (warning,) = stored(GREY // 16)[2]
    assert warning.startswith("the largest pixel is 15 of 0..255: the images are nearly black")
    assert "multiply (images * 17)" in warning
    assert stored(GREY // 16 * 17)[2] == ()
    assert stored(GREY // 2 + 1)[2] == ()  # up to 128


def test_a_part_far_darker_than_another_is_told_of() -> None:
    (warning,) = stored(GREY // 16, test=GREY)[2]
    assert "the largest pixel is 15 in train_images and 255 in test_images" in warning


@pytest.mark.parametrize("value", [0, 7, 255])
def test_equal_pixels_are_told_of(value: int) -> None:
    images, _, warnings = stored(np.full((3, 1, 8, 8), value, np.uint8))
    assert (images == value).all()
    assert warnings == (f"all pixels of all images are {value} of 0..255",)


@pytest.mark.parametrize("dtype", [complex, "U3", "O", "M8[s]"])
def test_what_is_no_number(dtype: str) -> None:
    assert "train_images: dtype is" in refusal(np.zeros((3, 1, 8, 8)).astype(dtype))


def test_conversion_in_place() -> None:
    images = BINARY.copy()
    assert to_uint8({"train": images}, "file", in_place=True).images["train"] is images
    np.testing.assert_array_equal(images, BINARY * 255)
    frozen = BINARY.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(to_uint8({"train": frozen}, "file", in_place=True).images["train"], images)


# -- axes -------------------------------------------------------------------------------------------------------------

COLOUR = RNG.randint(0, 256, (20, 3, 12, 10)).astype(np.uint8)


def channels(count: int, n: int = 20, height: int = 12, width: int = 10) -> np.ndarray:
    return RNG.randint(0, 256, (n, count, height, width)).astype(np.uint8)


def check_axes(images: np.ndarray, expected: np.ndarray, *notes: str, labels: Any = None) -> None:
    got, said = to_nchw({"train": images}, {} if labels is None else {"train": labels}, "file")
    np.testing.assert_array_equal(got["train"], expected)
    assert said == list(notes)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_any_number_of_channels(count: int) -> None:
    images = channels(count)
    check_axes(images, images)
    if count <= 4:
        check_axes(images.transpose(0, 2, 3, 1), images, "train_images read as [N, H, W, C]")


def test_many_channels_of_square_images() -> None:
    for count in (13, 64, 200):  # satellites
        images = channels(count, 3, 16, 16)
        check_axes(images, images)
        if count < 16:
            check_axes(images.transpose(0, 2, 3, 1), images, "train_images read as [N, H, W, C]")


def test_grey_images_without_channels() -> None:
    check_axes(GREY[:, 0], GREY)
    check_axes(GREY[:, 0, :, :, None], GREY, "train_images read as [N, H, W, C]")


def test_a_few_large_images() -> None:
    for shape in ((8, 1, 256, 256), (8, 256, 256), (8, 3, 480, 640), (2, 480, 640, 3), (1, 40, 60)):
        images = np.zeros(shape, np.uint8)
        to_nchw({"train": images}, {}, "file")


@pytest.mark.parametrize("labels", [(20,), (20, 1), (1, 20), (20, 10)])
def test_images_last_are_known_by_their_labels(labels: tuple[int, ...]) -> None:
    check_axes(np.moveaxis(GREY[:, 0], 0, -1), GREY, "train_images read as [H, W, N]", labels=labels)
    check_axes(COLOUR.transpose(2, 3, 1, 0), COLOUR, "train_images read as [H, W, C, N]", labels=labels)
    check_axes(COLOUR.transpose(1, 2, 3, 0), COLOUR, "train_images read as [C, H, W, N]", labels=labels)
    check_axes(COLOUR, COLOUR, labels=labels)


def test_images_last_are_known_by_a_second_part() -> None:
    parts = {"train": np.moveaxis(GREY[:, 0], 0, -1), "test": np.moveaxis(GREY[:5, 0], 0, -1)}
    got, notes = to_nchw(parts, {}, "file")
    np.testing.assert_array_equal(got["train"], GREY)
    np.testing.assert_array_equal(got["test"], GREY[:5])
    assert notes == ["train_images and test_images read as [H, W, N]"]
    colour = {"train": COLOUR.transpose(2, 3, 1, 0), "test": COLOUR[:4].transpose(2, 3, 1, 0)}
    np.testing.assert_array_equal(to_nchw(colour, {}, "file")[0]["test"], COLOUR[:4])
    few = {"train": np.zeros((8, 30, 40)), "test": np.zeros((5, 30, 40))}  # by the same token
    assert to_nchw(few, {}, "file")[0]["test"].shape == (5, 1, 30, 40)


@pytest.mark.parametrize(
    "shapes", [((20, 3, 4, 5), (20, 3, 4, 4)), ((20, 8, 9), (20, 8, 7)), ((5, 1, 28, 28), (5, 1, 28, 30))]
)
def test_parts_of_different_widths_are_no_images_last(shapes: tuple[tuple[int, ...], ...]) -> None:
    parts = {name: np.zeros(shape) for name, shape in zip(("train", "test"), shapes, strict=True)}
    assert [len(images) for images in to_nchw(parts, {}, "file")[0].values()] == [shape[0] for shape in shapes]


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        ((8, 8, 300), (300, 1, 8, 8)),
        ((32, 32, 300), (300, 1, 32, 32)),
        ((24, 32, 300), (300, 1, 24, 32)),
        ((28, 28, 300, 1), (300, 1, 28, 28)),
        ((32, 32, 3, 300), (300, 3, 32, 32)),
        ((28, 28, 1, 300), (300, 1, 28, 28)),
        ((20, 6, 7, 3), (20, 3, 6, 7)),
        ((20, 4, 5, 3), (20, 3, 4, 5)),
        ((300, 784), (300, 1, 28, 28)),
        ((300, 3072), (300, 3, 32, 32)),
    ],
)
def test_unclear_axes_are_asked_about_and_the_advice_works(shape: tuple[int, ...], first: tuple[int, ...]) -> None:
    images = RNG.randint(0, 256, shape).astype(np.uint8)
    message = refusal(images)
    assert str(list(shape)) in message
    again, _, _ = stored(followed(message, images))
    assert again.shape == first
    if "; if they are" in message:  # and the other reading
        other = re.search(r"images of .* store (images\.reshape\(.*\))$", message)
        assert other
        assert stored(eval(other[1]))[0].shape == (shape[0], 1, *shape[1:3])


def test_vectors_of_matlab() -> None:
    with pytest.raises(InputError, match=r"store images\.T\.reshape\(-1, 1, 8, 8\)"):
        to_nchw({"train": np.zeros((64, 300))}, {"train": (300,)}, "file")


@pytest.mark.parametrize("shape", [(5,), (0, 1, 8, 8), (3, 1, 0, 8), (2, 3, 1, 8, 8), ()])
def test_what_is_no_image(shape: tuple[int, ...]) -> None:
    assert f"shape is {list(shape)}" in refusal(np.zeros(shape, np.uint8))
