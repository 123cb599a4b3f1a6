"""Sources of images: one function per data set, from its original files to raw arrays.

`name(scratch, **options)` gets an existing empty folder for downloads (torchvision checks their md5) and returns
`Arrays`. Download errors are torchvision's; `cache` turns them into InputErrors. The user's invalid files
raise InputError here.
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

from vaerun.data.array_names import match_names
from vaerun.data.arrays import FIELDS, Arrays, check_arrays, split_off_test
from vaerun.data.folders import read_folder
from vaerun.data.formats.files import read_original
from vaerun.data.formats.hugging_face import read_tables
from vaerun.errors import InputError
from vaerun.storage.memory import available_bytes
from vaerun.storage.npz import DATA_BYTES, TooLarge, array_names, read_npz
from vaerun.storage.paths import expand_user
from vaerun.text import printable

TEN = tuple("0123456789")
OMNIGLOT_SPLIT = "vaerun: 15 of each character's 20 drawings train, 5 test, by seed 20240501"
UNOFFICIAL_SPLITS = {"omniglot": OMNIGLOT_SPLIT}
"""The splits of prepared files that have no official test part and do not name their own split."""


@contextmanager
def _download() -> Iterator[None]:
    """Configure torchvision's downloads: progress bars on a terminal only, a 60 s timeout, no plain http.

    Plain http is rejected after a redirect, too.
    """
    from torchvision.datasets import utils

    old_tqdm, old_timeout = utils.tqdm, socket.getdefaulttimeout()
    if not sys.stderr.isatty():
        utils.tqdm = functools.partial(old_tqdm, disable=True)
    socket.setdefaulttimeout(60.0)
    old_opener = getattr(urllib.request, "_opener", None)
    urllib.request.install_opener(urllib.request.build_opener(_HttpsOnly))
    try:
        yield
    finally:
        utils.tqdm = old_tqdm
        socket.setdefaulttimeout(old_timeout)
        urllib.request.install_opener(old_opener)


class _HttpsOnly(urllib.request.BaseHandler):
    handler_order = 100  # before the proxy handler

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        host = request.host.rpartition(":")[0] or request.host
        if host not in ("127.0.0.1", "localhost", "[::1]"):
            raise urllib.error.URLError(f"{request.full_url} does not use https")
        return request


HTTPS_MIRRORS = {
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/": (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
    ),
    "http://ufldl.stanford.edu/": "https://ufldl.stanford.edu/",
}
"""https addresses for files that torchvision downloads over http. Their md5 is checked in any case."""


def _https_url(url: str) -> str:
    return next((https + url.removeprefix(http) for http, https in HTTPS_MIRRORS.items() if url.startswith(http)), url)


def digits(scratch: Path) -> Arrays:
    """scikit-learn's embedded handwritten digits: 1797 images, uint8 [N, 1, 8, 8], 10 classes; no download."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # 17 grey levels, 0..16
    whole = Arrays(images[:, None], bunch.target.astype(np.int64), None, None, "")
    return split_off_test(whole, fraction=0.2, seed=0)


def mnist(scratch: Path) -> Arrays:
    """MNIST: uint8 [60000 and 10000, 1, 28, 28], 10 classes."""
    return _mnist_like("MNIST", scratch)


def fashion_mnist(scratch: Path) -> Arrays:
    """Fashion-MNIST: uint8 [60000 and 10000, 1, 28, 28], 10 classes."""
    return _mnist_like("FashionMNIST", scratch)


@_download()
def _mnist_like(class_name: str, scratch: Path) -> Arrays:
    from torchvision import datasets

    dataset = getattr(datasets, class_name)
    dataset = type(class_name, (dataset,), {"mirrors": [_https_url(url) for url in dataset.mirrors]})
    train, test = (dataset(str(scratch), train=part, download=True) for part in (True, False))
    images, test_images = (part.data.numpy()[:, None] for part in (train, test))
    return Arrays(images, train.targets.numpy(), test_images, test.targets.numpy(), "official", class_names=TEN)


@_download()
def cifar10(scratch: Path) -> Arrays:
    """CIFAR-10: uint8 [50000 and 10000, 3, 32, 32], 10 classes."""
    from torchvision.datasets import CIFAR10

    train, test = (CIFAR10(str(scratch), train=part, download=True) for part in (True, False))
    images, test_images = (part.data.transpose(0, 3, 1, 2) for part in (train, test))
    labels, test_labels = (np.asarray(part.targets, dtype=np.int64) for part in (train, test))
    return Arrays(images, labels, test_images, test_labels, "official", class_names=TEN)


@_download()
def svhn(scratch: Path) -> Arrays:
    """SVHN, cropped digits: uint8 [73257 and 26032, 3, 32, 32], labels 0..9. The 'extra' part is not used."""
    from torchvision.datasets import SVHN

    files = {part: [_https_url(url), *rest] for part, (url, *rest) in SVHN.split_list.items()}
    dataset = type("SVHN", (SVHN,), {"split_list": files})
    train, test = (dataset(str(scratch), split=part, download=True) for part in ("train", "test"))
    return Arrays(train.data, train.labels, test.data, test.labels, "official", class_names=TEN)


@_download()
def omniglot(scratch: Path) -> Arrays:
    """Omniglot: uint8 [24345 and 8115, 1, 28, 28], label = character (background set first, then evaluation).

    Bright strokes on black, resized from 105x105 with Lanczos. Of the 20 drawings of each character, 15 are for
    training and 5 for testing. This is not the split of Burda et al. (2016): log-likelihoods are not comparable with
    published ones.
    """
    from PIL import Image, ImageOps
    from torchvision.datasets import Omniglot

    # torchvision lists folders in the order of the file system; labels and split need a fixed one.
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
                resized = ImageOps.invert(image.convert("L")).resize((28, 28), Image.Resampling.LANCZOS)
            images.append(np.asarray(resized))
            labels.append(label)
    train_rows, test_rows = generator.permutation(train), generator.permutation(test)
    x, y = np.stack(images)[:, None], np.asarray(labels, dtype=np.int64)
    return Arrays(x[train_rows], y[train_rows], x[test_rows], y[test_rows], OMNIGLOT_SPLIT)


BUILT_IN: dict[str, Callable[[Path], Arrays]] = {
    source.__name__: source for source in (digits, mnist, fashion_mnist, cifar10, svhn, omniglot)
}
"""The data sets that need only a name."""


def npz(scratch: Path, path: str | Path = "", split: str | None = None) -> Arrays:
    """The arrays of an .npz file: train_images, and optionally train_labels, test_images, validation_images, ...

    Other usual names are understood (`match_names`). Without test images, a tenth is split off. The split is named by
    the array `split` (one string) of the file, else by the argument, else "official". Other formats are read by
    `vaerun.data.formats`. Raises InputError if the file is missing, corrupt, not in these formats or larger than the
    memory.
    """
    path = _require_path(path, "data=npz")
    if path.exists() and (original := read_original(path)) is not None:
        return _with_test_part(original, path)
    needs = "required: train_images, [N, C, H, W] (optional: train_labels, test_images, test_labels, ...)"
    if not path.is_file():
        raise InputError(f"{path}: {'not a file' if path.exists() else 'no such file'}; expected an .npz file; {needs}")
    available = available_bytes()
    try:
        chosen, notes = match_names(array_names(path), str(path))
        content = read_npz(
            path, {*chosen.values(), "split"}, maximum_bytes=DATA_BYTES if available is None else available, expansion=1
        )
    except InputError:
        raise
    except TooLarge as error:
        memory = "1 GB is read" if available is None else f"{available / 1e9:.2g} GB of memory are available"
        raise InputError(
            f"{path}: its arrays take {error.total / 1e9:.2g} GB, and {memory}: store fewer images, or store them by "
            "np.savez, which does not compress, to have them read in any case"
        ) from error
    except MemoryError as error:
        raise InputError(f"{path}: its arrays do not fit into memory: store fewer or smaller images") from error
    # Damaged files raise a dozen exceptions of zipfile, zlib and numpy; their type tells the user nothing more.
    except Exception as error:
        raise InputError(f"{path}: not a readable .npz file ({describe_error(error)}); {needs}") from error
    stored_split = content.pop("split", None)
    if stored_split is not None and stored_split.ndim == 0 and stored_split.dtype.kind == "U":
        split = str(stored_split)
    fields: dict[str, Any] = {field: content.pop(chosen[field]) if field in chosen else None for field in FIELDS}
    return _with_test_part(Arrays(**fields, split=split or "official", notes=tuple(notes)), path)


def file(scratch: Path, path: str | Path = "") -> Arrays:
    """The images of a file, or of a folder with the files of a published data set; see `npz`."""
    return npz(scratch, _require_path(path, "data=file"))


def hf(
    scratch: Path,
    path: str | Path = "",
    image_size: int | Sequence[int] | None = None,
    channels: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Arrays:
    """The images of a HuggingFace data set on disk; see `read_tables`."""
    path = _require_path(path, "data=hf")
    return _with_test_part(read_tables(path, image_size, channels, image_column, label_column), path)


def _with_test_part(arrays: Arrays, path: Path) -> Arrays:
    arrays = check_arrays(arrays, str(path), in_place=True)
    return split_off_test(arrays, in_place=True) if arrays.test_images is None else arrays


def folder(
    scratch: Path, path: str | Path = "", image_size: int | Sequence[int] | None = None, channels: int | None = 3
) -> Arrays:
    """The image files below a folder; see `read_folder`."""
    return read_folder(_require_path(path, "data=folder"), image_size, channels)


def describe_error(error: BaseException) -> str:
    """The message of an exception, in one line of at most 200 characters."""
    return printable(error, 200) or type(error).__name__


def _require_path(path: str | Path, data: str) -> Path:
    if not path:
        raise InputError(f"{data} needs the path of the images: set data.path=PATH")
    return expand_user(path)
