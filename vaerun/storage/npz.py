"""npz files and other zip archives, with declared sizes checked before memory is allocated.

An archive declares the size of each member, and an array its shape; a few bytes can declare terabytes. The declared
sizes must be consistent with the file: no overlapping members, arrays exactly as large as their members, and a bounded
expansion ratio or, for the user's own data, enough memory.
"""

from __future__ import annotations

import io
import math
import os
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

from vaerun.storage.untrusted import MIB, open_regular
from vaerun.text import printable

MAXIMUM_MEMBERS = 100_000
MAXIMUM_EXPANSION = 100  # maximum expansion ratio; ignored up to the limit in bytes
ARRAYS_BYTES = 256 * MIB  # limit on per-image values
DATA_BYTES = 1024 * MIB  # limit on images, unless as much memory is available
MAXIMUM_DICTIONARY_BYTES = 64 * MIB  # as in LZMA's strongest preset


class TooLarge(ValueError):
    """Raised for an archive that declares more data than is allowed.

    Attributes:
        total: bytes that it declares.
    """

    def __init__(self, size: int, total: int) -> None:
        super().__init__(f"a file of {size} bytes declares {total} bytes of data")
        self.total = total


def check_members(
    archive: zipfile.ZipFile,
    size: int,
    maximum_bytes: int,
    compressed: bool = True,
    expansion: int = MAXIMUM_EXPANSION,
) -> None:
    """Raise ValueError for an archive that declares more data than it can contain.

    Arguments:
        archive: opened archive.
        size: size of its file in bytes.
        maximum_bytes: limit on the total size of members, else TooLarge; `expansion` times `size` is always allowed.
        compressed: whether members may be compressed.
    """
    members = archive.infolist()
    names = {member.filename for member in members}
    if len(members) > MAXIMUM_MEMBERS or len(names) < len(members):
        raise ValueError("it has too many members" if len(members) > MAXIMUM_MEMBERS else "two members share a name")
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA) if compressed else (zipfile.ZIP_STORED,)
    for member in members:
        name = member.filename[:40]
        if member.compress_type not in methods or member.flag_bits & 1:
            raise ValueError(f"its member {name} is encrypted or uses an unsupported compression method")
        if member.compress_type == zipfile.ZIP_LZMA and _dictionary_bytes(archive, member) > MAXIMUM_DICTIONARY_BYTES:
            raise ValueError(f"its member {name} needs too large an LZMA dictionary")
        if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
            raise ValueError(f"the sizes of its member {name} contradict each other")
    if sum(member.compress_size for member in members) > size:
        raise ValueError("its members overlap")
    total = sum(member.file_size for member in members)
    if total > max(maximum_bytes, expansion * size):
        raise TooLarge(size, total)


def _dictionary_bytes(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Memory taken by the LZMA dictionary of a member, as declared in its header (APPNOTE 5.8.8)."""
    file: Any = archive.fp
    file.seek(member.header_offset)
    header = file.read(30)
    file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
    return int.from_bytes(file.read(9)[5:9], "little")


def read_npz(
    path: Path,
    names: Collection[str] | None = None,
    *,
    maximum_bytes: int = ARRAYS_BYTES,
    expansion: int = MAXIMUM_EXPANSION,
    root: Path | None = None,
) -> dict[str, Any]:
    """Read the arrays of an npz file by name; object arrays are rejected.

    Arguments:
        path: path of the file.
        names: arrays to read, if present; None: all.
        maximum_bytes, expansion: see check_members.
        root: see open_regular.

    Raises FileNotFoundError for a missing file; ValueError, OSError, zipfile.BadZipFile or other exceptions of zipfile
    for an unreadable one.
    """
    with open_regular(path, root) as file, _open_archive(file) as archive:
        check_members(archive, os.fstat(file.fileno()).st_size, maximum_bytes, expansion=expansion)
        arrays = {}
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name != member.filename and (names is None or name in names):
                try:
                    arrays[name] = _read_array(archive, member)
                except MemoryError:
                    raise
                except Exception as error:
                    raise ValueError(f"{name[:60]}: {printable(error, 200) or type(error).__name__}") from error
        return arrays


def array_names(path: Path) -> list[str]:
    """Names of the arrays in an npz file."""
    with open_regular(path) as file, _open_archive(file) as archive:
        return [m.filename.removesuffix(".npy") for m in archive.infolist() if m.filename.endswith(".npy")]


def _open_archive(file: IO[bytes]) -> zipfile.ZipFile:
    if not zipfile.is_zipfile(file):
        raise ValueError("not an npz archive, or truncated")
    file.seek(0)
    return zipfile.ZipFile(file)


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    import numpy as np

    with archive.open(member) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about headers that are invalid or written by Python 2
        start = io.BytesIO(stream.read(1 << 16))  # numpy limits headers to 10000 characters
        check_header(start, member.file_size)
    with archive.open(member) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = np.lib.format.read_array(stream, allow_pickle=False)
        if stream.read(1):
            raise ValueError("a member holds more than one array")
    return array


def check_header(start: IO[bytes], size: int) -> None:
    """Raise ValueError if the shape declared by a .npy file does not match its size in bytes."""
    from numpy.lib import format as npy

    version = npy.read_magic(start)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"unsupported npy format version {version}")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(start)
    if dtype.hasobject:
        raise ValueError("Object arrays are rejected: reading one runs code from the file")
    count = math.prod(shape)
    if any(length < 0 for length in shape) or count * dtype.itemsize != size - start.tell() or count > max(1, size):
        raise ValueError(f"an array of shape {list(shape)[:6]} does not match its {size} bytes")
