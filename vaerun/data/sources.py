"""Where images come from: one function per data set, from its original files to raw arrays.

`name(scratch, **options)` gets an existing empty folder, in which torchvision may leave the files that it downloads (it
checks their md5), and returns `Arrays`. Failures of a download pass through as torchvision raises them: `cache` names
them. Broken files of the user's are `InputError`s here.
"""

from __future__ import annotations

import functools
import os
import re
import socket
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vaerun.data.arrays import FIELDS, Arrays, check, split_off_test
from vaerun.errors import InputError

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff")
OMNIGLOT_SPLIT = "vaerun: 15 of each character's 20 drawings train, 5 test, by seed 20240501"
UNOFFICIAL = {"omniglot": OMNIGLOT_SPLIT}
"""The splits of prepared files whose test part is not the authors' and that do not name it themselves."""


@contextmanager
def _download() -> Iterator[None]:
    """Progress bars only on a terminal; a server that falls silent is given up after 60 s, not waited for for ever."""
    from torchvision.datasets import utils

    bar, timeout = utils.tqdm, socket.getdefaulttimeout()
    if not sys.stderr.isatty():
        utils.tqdm = functools.partial(bar, disable=True)
    socket.setdefaulttimeout(60.0)
    try:
        yield
    finally:
        utils.tqdm = bar
        socket.setdefaulttimeout(timeout)


def digits(scratch: Path) -> Arrays:
    """scikit-learn's embedded handwritten digits: 1797 images, uint8 [N, 1, 8, 8], 10 classes; nothing to download."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # 17 grey levels, 0..16
    return split_off_test(images[:, None], bunch.target.astype(np.int64), fraction=0.2, seed=0)


def mnist(scratch: Path) -> Arrays:
    """MNIST: uint8 [60000 and 10000, 1, 28, 28], 10 classes."""
    return _mnist_like("MNIST", scratch)


def fashion_mnist(scratch: Path) -> Arrays:
    """Fashion-MNIST: uint8 [60000 and 10000, 1, 28, 28], 10 classes."""
    return _mnist_like("FashionMNIST", scratch)


@_download()
def _mnist_like(kind: str, scratch: Path) -> Arrays:
    from torchvision import datasets

    train, test = (getattr(datasets, kind)(str(scratch), train=part, download=True) for part in (True, False))
    return Arrays(
        train.data.numpy()[:, None], train.targets.numpy(), test.data.numpy()[:, None], test.targets.numpy(), "official"
    )


@_download()
def cifar10(scratch: Path) -> Arrays:
    """CIFAR-10: uint8 [50000 and 10000, 3, 32, 32], 10 classes."""
    from torchvision.datasets import CIFAR10

    train, test = (CIFAR10(str(scratch), train=part, download=True) for part in (True, False))
    images, test_images = (part.data.transpose(0, 3, 1, 2) for part in (train, test))
    labels, test_labels = (np.asarray(part.targets, dtype=np.int64) for part in (train, test))
    return Arrays(images, labels, test_images, test_labels, "official")


@_download()
def svhn(scratch: Path) -> Arrays:
    """SVHN, cropped digits: uint8 [73257 and 26032, 3, 32, 32], labels 0..9. The 'extra' part is not used."""
    from torchvision.datasets import SVHN

    train, test = (SVHN(str(scratch), split=part, download=True) for part in ("train", "test"))
    return Arrays(train.data, train.labels, test.data, test.labels, "official")


@_download()
def omniglot(scratch: Path) -> Arrays:
    """Omniglot: uint8 [24345 and 8115, 1, 28, 28], label = character (background ones first, then evaluation).

    Strokes are bright on black, shrunk from 105x105 with Lanczos. Of each character's 20 drawings 15 train and 5 test.
    This is not the split of Burda et al. (2016): log-likelihoods are not comparable with published ones.
    """
    from PIL import Image, ImageOps
    from torchvision.datasets import Omniglot

    # torchvision lists folders in the file system's order; the labels and the split need a sorted one.
    characters: list[Path] = []
    for background in (True, False):
        part = Path(Omniglot(str(scratch), background=background, download=True).target_folder)
        characters += sorted(folder for folder in part.glob("*/*") if folder.is_dir())
    generator = np.random.RandomState(20240501)
    images, labels = list[np.ndarray](), list[int]()
    train, test = list[int](), list[int]()
    for label, character in enumerate(characters):
        drawings = sorted(character.glob("*.png"))
        order = generator.permutation(len(drawings)) + len(images)
        train.extend(np.sort(order[:15]))
        test.extend(np.sort(order[15:]))
        for drawing in drawings:
            with Image.open(drawing) as image:
                small = ImageOps.invert(image.convert("L")).resize((28, 28), Image.Resampling.LANCZOS)
            images.append(np.asarray(small))
            labels.append(label)
    first, second = generator.permutation(train), generator.permutation(test)
    stack, classes = np.stack(images)[:, None], np.asarray(labels, dtype=np.int64)
    return Arrays(stack[first], classes[first], stack[second], classes[second], OMNIGLOT_SPLIT)


BUILT_IN: dict[str, Callable[[Path], Arrays]] = {
    source.__name__: source for source in (digits, mnist, fashion_mnist, cifar10, svhn, omniglot)
}
"""The data sets that need nothing but their name."""


def npz(scratch: Path, path: str | Path = "", split: str | None = None) -> Arrays:
    """The arrays of an .npz file: train_images, and optionally train_labels, test_images, test_labels.

    Without test_images a tenth is split off. An array `split` (one string) in the file, else the argument, else
    "official", names the split. Raises `InputError` for a file that is missing, corrupt or not in the format.
    """
    path = _given(path, "data=npz")
    needs = "needed: train_images, uint8 [N, C, H, W] (optional: train_labels, test_images, test_labels)"
    if not path.is_file():
        raise InputError(f"{path}: {'not a file' if path.exists() else 'no such file'}; expected an .npz file; {needs}")
    found: dict[str, Any] = dict.fromkeys((*FIELDS, "split"))
    names: list[str] = []
    field = "archive"
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise ValueError("no zip archive of arrays, or cut short")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                names = archive.files
                for field in set(found) & set(names):
                    found[field] = archive[field]
    # Damage shows as one of a dozen exceptions of zipfile, zlib, lzma and numpy; which one tells the user nothing more.
    except Exception as error:
        raise InputError(f"{path}: not a readable .npz file ({field}: {reason(error)}); {needs}") from error
    if "train_images" not in names:
        raise InputError(f"{path}: holds {', '.join(names) or 'no arrays'}; {needs}")
    named = found.pop("split")
    if named is not None and named.ndim == 0 and named.dtype.kind == "U":
        split = str(named)
    arrays = check(Arrays(**found, split=split or "official"), str(path))
    if arrays.test_images is None:
        return split_off_test(arrays.train_images, arrays.train_labels)
    return arrays


def folder(
    scratch: Path, path: str | Path = "", image_size: int | Sequence[int] | None = None, channels: int = 3
) -> Arrays:
    """The image files below a folder, in natural order (2.png before 10.png), as uint8 [N, channels, H, W].

    PATH/train and PATH/test, where both exist, are the two parts (other subfolders are then not read); else a tenth of
    PATH is split off. The class of an image is its subfolder; images directly in the folder have no labels.
    `image_size` (pixels, or [H, W]) crops the centre to that aspect and resizes with Lanczos; without it all images
    must have one size. Transparency is laid on white. Raises `InputError` for what cannot be used.
    """
    path = _given(path, "data=folder")
    if not path.is_dir():
        raise InputError(f"{path}: not a folder; expected a folder of images")
    if channels not in (1, 3):
        raise InputError(f"data.channels={channels}: expected 1 (grey) or 3 (RGB)")
    size = _size(image_size)
    if (path / "train").is_dir() and (path / "test").is_dir():
        train, test = _image_files(path / "train"), _image_files(path / "test")
        train_labels, names = _classes(train, path / "train")
        test_labels, _ = _classes(test, path / "test", names)
        images = _read(train + test, size, channels)
        return Arrays(images[: len(train)], train_labels, images[len(train) :], test_labels, "official")
    files = _image_files(path)
    top = {file.relative_to(path).parts[0] for file in files}
    if "train" in top and top <= {"train", "val", "valid", "validation"}:
        raise InputError(f"{path}: has train/ but no test/; add it, or give {path / 'train'} to have a part split off")
    return split_off_test(_read(files, size, channels), _classes(files, path)[0])


def reason(error: BaseException) -> str:
    """What an exception says, in one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _given(path: str | Path, data: str) -> Path:
    if not path:
        raise InputError(f"{data} needs to know where the images are; give data.path=PATH")
    return Path(path).expanduser()


def _size(image_size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Height and width."""
    if image_size is None:
        return None
    try:
        height, width = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
            return height, width
    except (TypeError, ValueError):
        pass
    raise InputError(f"data.image_size={image_size}: expected a number of pixels, or two: [height, width]")


def _image_files(path: Path) -> list[Path]:
    """The image files below a folder in natural order; hidden ones, such as macOS's `._1.png`, are left out."""
    found = []
    for base, _, names in os.walk(path, followlinks=True):
        found += [Path(base, name) for name in names if name.lower().endswith(IMAGE_FILES) and name[0] != "."]
    if not found:
        raise InputError(f"{path}: holds no image files ({' '.join(IMAGE_FILES)}); give the folder that does")
    return sorted(found, key=lambda file: [_natural(part) for part in file.relative_to(path).parts])


def _natural(name: str) -> tuple[list[str | int], str]:
    """A sorting key that takes runs of digits as numbers; the name itself decides between 1.png and 01.png."""
    # split puts text at even and digits at odd places, so that unlike things are never compared.
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))], name


def _classes(files: list[Path], path: Path, known: list[str] | None = None) -> tuple[np.ndarray | None, list[str]]:
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


def _read(files: list[Path], size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """The pixels of image files, uint8 [N, channels, H, W]."""
    images: np.ndarray | None = None
    for i, file in enumerate(files):
        try:
            pixels = _pixels(file, size, channels)
        # Pillow answers damage with OSError, SyntaxError, ValueError, struct.error and more.
        except Exception as error:
            raise InputError(f"{file}: cannot be read as an image ({reason(error)}); repair or remove it") from error
        if images is None:
            images = np.empty((len(files), *pixels.shape), dtype=np.uint8)
        if pixels.shape != images.shape[1:]:
            (height, width), (other_height, other_width) = images.shape[2:], pixels.shape[1:]
            raise InputError(
                f"images differ in size: {files[0]} is {width}x{height} but {file} is {other_width}x{other_height} "
                "(width x height); give one size, e.g. data.image_size=32"
            )
        images[i] = pixels
    assert images is not None  # _image_files raises where there are none
    return images


def _pixels(file: Path, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """One image file as uint8 [channels, H, W]."""
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
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
