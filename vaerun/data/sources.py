"""Where images come from: one function per data set, from its original files to raw arrays.

`name(scratch, **options)` gets an existing empty folder, in which torchvision may leave the files that it downloads (it
checks their md5), and returns `Arrays`. Failures of a download pass through as torchvision raises them: `cache` names
them. Broken files of the user's are `InputError`s here.
"""

from __future__ import annotations

import functools
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vaerun.data.arrays import FIELDS, Arrays, check_arrays, split_off_test
from vaerun.data.image_files import class_labels, list_image_files, parse_size, read_pixels
from vaerun.errors import InputError
from vaerun.storage.npz import DATA_BYTES, array_names, read_npz
from vaerun.storage.paths import expand_user
from vaerun.text import printable

OMNIGLOT_SPLIT = "vaerun: 15 of each character's 20 drawings train, 5 test, by seed 20240501"
UNOFFICIAL_SPLITS = {"omniglot": OMNIGLOT_SPLIT}
"""The splits of prepared files whose test part is not the authors' and that do not name it themselves."""


@contextmanager
def _download() -> Iterator[None]:
    """Progress bars only on a terminal; a server that falls silent is given up after 60 s, not waited for for ever.

    Nothing is asked for over plain http, neither at first nor by a server that sends on to it.
    """
    from torchvision.datasets import utils

    bar, timeout = utils.tqdm, socket.getdefaulttimeout()
    if not sys.stderr.isatty():
        utils.tqdm = functools.partial(bar, disable=True)
    socket.setdefaulttimeout(60.0)
    before = getattr(urllib.request, "_opener", None)
    urllib.request.install_opener(urllib.request.build_opener(_HttpsOnly))
    try:
        yield
    finally:
        utils.tqdm = bar
        socket.setdefaulttimeout(timeout)
        urllib.request.install_opener(before)


class _HttpsOnly(urllib.request.BaseHandler):
    handler_order = 100  # before a proxy is looked for

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        host = request.host.rpartition(":")[0] or request.host
        if host not in ("127.0.0.1", "localhost", "[::1]"):
            raise urllib.error.URLError(f"{request.full_url} is not encrypted: refused")
        return request


HTTPS_MIRRORS = {
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/": (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
    ),
    "http://ufldl.stanford.edu/": "https://ufldl.stanford.edu/",
}
"""Where torchvision has addresses without encryption: the same files with it. It checks their md5 in any case."""


def _https_url(url: str) -> str:
    return next((new + url.removeprefix(old) for old, new in HTTPS_MIRRORS.items() if url.startswith(old)), url)


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

    source = getattr(datasets, kind)
    source = type(kind, (source,), {"mirrors": [_https_url(url) for url in source.mirrors]})
    train, test = (source(str(scratch), train=part, download=True) for part in (True, False))
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

    files = {part: [_https_url(url), *rest] for part, (url, *rest) in SVHN.split_list.items()}
    source = type("SVHN", (SVHN,), {"split_list": files})
    train, test = (source(str(scratch), split=part, download=True) for part in ("train", "test"))
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
    path = _require_path(path, "data=npz")
    needs = "needed: train_images, uint8 [N, C, H, W] (optional: train_labels, test_images, test_labels)"
    if not path.is_file():
        raise InputError(f"{path}: {'not a file' if path.exists() else 'no such file'}; expected an .npz file; {needs}")
    found: dict[str, Any] = dict.fromkeys((*FIELDS, "split"))
    names: list[str] = []
    try:
        found |= read_npz(path, found.keys(), maximum_bytes=DATA_BYTES)
        names = array_names(path)
    # Damage shows as one of a dozen exceptions of zipfile, zlib and numpy; which one tells the user nothing more.
    except Exception as error:
        raise InputError(f"{path}: not a readable .npz file ({describe_error(error)}); {needs}") from error
    if "train_images" not in names:
        raise InputError(f"{path}: holds {', '.join(names) or 'no arrays'}; {needs}")
    named = found.pop("split")
    if named is not None and named.ndim == 0 and named.dtype.kind == "U":
        split = str(named)
    arrays = check_arrays(Arrays(**found, split=split or "official"), str(path))
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
    path = _require_path(path, "data=folder")
    if not path.is_dir():
        raise InputError(f"{path}: not a folder; expected a folder of images")
    if channels not in (1, 3):
        raise InputError(f"data.channels={channels}: expected 1 (grey) or 3 (RGB)")
    size = parse_size(image_size)
    if (path / "train").is_dir() and (path / "test").is_dir():
        train, test = list_image_files(path / "train"), list_image_files(path / "test")
        train_labels, names = class_labels(train, path / "train")
        test_labels, _ = class_labels(test, path / "test", names)
        images = read_pixels(train + test, size, channels)
        return Arrays(images[: len(train)], train_labels, images[len(train) :], test_labels, "official")
    files = list_image_files(path)
    top = {file.relative_to(path).parts[0] for file in files}
    if "train" in top and top <= {"train", "val", "valid", "validation"}:
        raise InputError(f"{path}: has train/ but no test/; add it, or give {path / 'train'} to have a part split off")
    return split_off_test(read_pixels(files, size, channels), class_labels(files, path)[0])


def describe_error(error: BaseException) -> str:
    """What an exception says, in one line of at most 200 characters."""
    return printable(error, 200) or type(error).__name__


def _require_path(path: str | Path, data: str) -> Path:
    if not path:
        raise InputError(f"{data} needs to know where the images are; give data.path=PATH")
    return expand_user(path)
