"""The numeric arrays of MATLAB's .mat files of level 5, as `save -v6` and `-v7` write them.

A file is a header of 128 bytes and a sequence of elements: tag (type, bytes), content. An element is a matrix or, since
version 7, one compressed by zlib. A matrix consists of the elements flags, dimensions, name and values, column-major
("MAT-File Format", MathWorks). Structures, cells, objects, functions and text are not read.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vaerun.data.formats.reading import check_expansion, reading
from vaerun.errors import InputError
from vaerun.storage.untrusted import open_regular

START = b"MATLAB 5.0"
HDF5 = b"\x89HDF\r\n\x1a\n"
HEADER_BYTES = 128
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX, COMPRESSED = 14, 15
NUMERIC_CLASSES = range(6, 16)  # double, single, and integers of 8 to 64 bits
COMPLEX, LOGICAL = 0x0800, 0x0200
MAXIMUM_DIMENSIONS = 32


def read_matlab(path: Path) -> dict[str, np.ndarray]:
    """The real numeric arrays of a file by name, in the dtypes in which they are stored.

    Raises InputError for damaged files, files with complex numbers, and those of version 7.3, which are HDF5.
    """
    with reading(path, "MATLAB file"), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        header = file.read(HEADER_BYTES)
        order = {b"IM": "<", b"MI": ">"}.get(header[126:])
        if order is None or not header.startswith(START):
            version = "of version 7.3 (HDF5)" if header.startswith((HDF5, b"MATLAB 7.3")) else "of another version"
            raise InputError(f"{path}: a MATLAB file {version}, not of 5 to 7: save it in MATLAB with -v7")
        arrays, total = dict[str, np.ndarray](), 0
        while tag := file.read(8):
            kind, length = struct.unpack(f"{order}II", tag)
            if length > size - file.tell():
                raise ValueError("it is cut off")
            content = file.read(length)
            if kind == COMPRESSED:
                kind, content = _inflate(content, order, size, total)
            total += len(content)
            if kind == MATRIX and (named := _matrix(content, order)) is not None:
                arrays[named[0]] = named[1]
        return arrays


def _inflate(content: bytes, order: str, size: int, total: int) -> tuple[int, bytes]:
    """Type and content of a compressed element, after others of `total` bytes."""
    inflater = zlib.decompressobj()
    kind, length = struct.unpack(f"{order}II", inflater.decompress(content, 8))
    check_expansion(total + length, size)
    inflated = inflater.decompress(inflater.unconsumed_tail, max(1, length))  # 0 would mean no limit
    if len(inflated) < length:
        raise ValueError("a compressed array is cut off")
    return kind, inflated


def _matrix(content: bytes, order: str) -> tuple[str, np.ndarray] | None:
    """Name and values of a matrix; None if it is not numeric."""
    elements = _elements(content, order)
    (flags,) = struct.unpack(f"{order}I4x", next(elements)[1])
    if flags & 0xFF not in NUMERIC_CLASSES:
        return None
    dimensions = np.frombuffer(next(elements)[1], f"{order}i4").tolist()
    name = bytes(next(elements)[1]).decode("ascii")
    if not name.isidentifier():
        raise ValueError("a variable has a name that MATLAB does not allow")
    if flags & COMPLEX:
        raise ValueError(f"{name} has complex numbers")
    kind, data = next(elements)
    if kind not in TYPES:
        raise ValueError(f"{name} has values of an unknown type")
    values = np.frombuffer(data, order + TYPES[kind])
    if len(dimensions) > MAXIMUM_DIMENSIONS or min(dimensions) < 0 or math.prod(dimensions) != len(values):
        raise ValueError(f"{name} has {len(values)} values, which do not make an array of {dimensions[:6]}")
    array = values.reshape(dimensions, order="F")
    return name, array.astype(bool) if flags & LOGICAL else array


def _elements(content: bytes, order: str) -> Iterator[tuple[int, memoryview]]:
    """Types and contents of the elements of a matrix. Raises ValueError if one is missing that is asked for."""
    view, at = memoryview(content), 0
    while True:
        kind, length = struct.unpack_from(f"{order}II", view, at)
        start = at + 8
        if kind >> 16:  # up to four bytes are packed into the tag
            kind, length, start = kind & 0xFFFF, kind >> 16, at + 4
            at += 8
            if length > 4:
                raise ValueError("an element has a wrong tag")
        else:
            at = start + -(-length // 8) * 8
        if length > len(view) - start:
            raise ValueError("an element is cut off")
        yield kind, view[start : start + length]
