"""IDX files, as MNIST, Fashion-MNIST, KMNIST and EMNIST are distributed, compressed by gzip or not.

An IDX file is a big-endian header (two zero bytes, type, number of dimensions, dimensions) followed by the values
(LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vaerun.data.arrays import Arrays
from vaerun.data.formats.reading import check_expansion, reading
from vaerun.errors import InputError
from vaerun.storage.untrusted import open_regular

FILE_NAME = re.compile(
    r"(?P<set>.*?)[-_]?(?P<part>train|test|t10k)-(?P<kind>images|labels)[-.]idx[1-4]-\w+(\.gz)?", re.IGNORECASE
)
PARTS = {"train": "train", "test": "test", "t10k": "test"}
TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP = b"\x1f\x8b"
CHUNK_BYTES = 1 << 20


def idx_set(paths: Iterable[Path], where: Path) -> Arrays:
    """The data set of a folder's IDX files, whose names match FILE_NAME.

    Raises InputError if there are files of several sets, or none of training images.
    """
    files: dict[str, Path] = {}
    sets = set[str]()
    for path in sorted(paths):  # of x and x.gz the first is read
        match = FILE_NAME.fullmatch(path.name)
        assert match is not None
        sets.add(match["set"])
        files.setdefault(f"{PARTS[match['part'].lower()]}_{match['kind'].lower()}", path)
    if len(sets) > 1:
        raise InputError(
            f"{where}: has the IDX files of several data sets ({', '.join(sorted(sets))}): set data.path to one of the "
            "files, which stands for its data set"
        )
    if "train_images" not in files:
        raise InputError(
            f"{where}: has {', '.join(path.name for path in files.values())} but no training images: put the file "
            "named like train-images-idx3-ubyte.gz next to it"
        )
    arrays: dict[str, Any] = {field: read_idx(path) for field, path in files.items()}
    notes = [f"IDX files {', '.join(path.name for path in files.values())}"]
    if "emnist" in sets.pop().lower():
        for part in ("train", "test"):
            if f"{part}_images" in arrays:
                arrays[f"{part}_images"] = arrays[f"{part}_images"].swapaxes(1, 2)
        notes.append("EMNIST's images, which are stored with rows and columns exchanged, are turned upright")
    for field in ("train_labels", "test_images", "test_labels"):
        arrays.setdefault(field, None)
    return Arrays(**arrays, split="official", notes=tuple(notes))


def is_idx(start: bytes) -> bool:
    """Whether a file that begins with these bytes may be an IDX file."""
    return start[:2] == GZIP or (len(start) >= 4 and start[:2] == b"\0\0" and start[2] in TYPES and 1 <= start[3] <= 4)


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file. Raises InputError if it is not one."""
    with reading(path, "IDX file"), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        compressed = file.peek(2)[:2] == GZIP
        stream: Any = gzip.GzipFile(fileobj=file) if compressed else file
        start = stream.read(4)
        if start[:2] == GZIP or not is_idx(start):
            raise ValueError("it does not start as one")
        shape = struct.unpack(f">{start[3]}I", stream.read(4 * start[3]))
        dtype = np.dtype(TYPES[start[2]])
        total = math.prod(shape) * dtype.itemsize
        if compressed:
            check_expansion(total, size)
        elif total > size:
            raise ValueError(f"it declares {_format(shape)} values but has {size} bytes")
        values = bytearray()
        while len(values) < total and (chunk := stream.read(min(CHUNK_BYTES, total - len(values)))):
            values += chunk
        if len(values) < total or stream.read(1):
            held = "less" if len(values) < total else "more"
            raise ValueError(f"it declares {_format(shape)} values but holds {held}")
        return np.frombuffer(values, dtype).reshape(shape)


def _format(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
