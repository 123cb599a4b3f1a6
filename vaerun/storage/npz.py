"""npz files and other zip archives whose sizes are looked at before anything is allocated for them.

An archive says of each member how large it is, and an array in it which shape it has; a few bytes can say terabytes.
What is said must fit what is there: no more than deflate can make of a file of this size within a limit, no two members
in one place, and an array exactly as large as its member.
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

MOST_MEMBERS = 100_000
RATIO = 100  # that a large archive may expand by; a small one by as much as its limit allows
ARRAYS_BYTES = 256 * MIB  # of values per image
DATA_BYTES = 1024 * MIB  # of images
DICTIONARY_BYTES = 64 * MIB  # of LZMA's, as its strongest setting has it


def check_members(archive: zipfile.ZipFile, size: int, most: int, compressed: bool = True) -> None:
    """Raises ValueError for an archive that claims more than it can hold.

    Arguments:
        archive: opened.
        size: of its file in bytes.
        most: bytes that its members may have together, where that is above RATIO times its size.
        compressed: whether its members may be.
    """
    members = archive.infolist()
    names = {member.filename for member in members}
    if len(members) > MOST_MEMBERS or len(names) < len(members):
        raise ValueError("it has too many members" if len(members) > MOST_MEMBERS else "two members have one name")
    for member in members:
        allowed = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA) if compressed else (zipfile.ZIP_STORED,)
        if member.compress_type not in allowed or member.flag_bits & 1:
            raise ValueError(f"its part {member.filename[:40]} is compressed or encrypted in another way than vaerun's")
        if member.compress_type == zipfile.ZIP_LZMA and _dictionary(archive, member) > DICTIONARY_BYTES:
            raise ValueError(f"its part {member.filename[:40]} asks for more memory than compressing well needs")
        if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
            raise ValueError(f"the sizes of its part {member.filename[:40]} contradict each other")
    if sum(member.compress_size for member in members) > size:
        raise ValueError("its parts overlap")
    whole = sum(member.file_size for member in members)
    if whole > max(most, RATIO * size):
        raise ValueError(f"{size} bytes of file claim to be {whole} bytes of data")


def _dictionary(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Bytes that unpacking a member compressed by LZMA would allocate: the file says so (APPNOTE 5.8.8)."""
    file: Any = archive.fp
    file.seek(member.header_offset)
    head = file.read(30)
    file.seek(int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little"), os.SEEK_CUR)
    return int.from_bytes(file.read(9)[5:9], "little")


def read_npz(
    path: Path, names: Collection[str] | None = None, *, most: int = ARRAYS_BYTES, within: Path | None = None
) -> dict[str, Any]:
    """The arrays of an npz file by name; no objects.

    Arguments:
        path: of the file.
        names: read these only, as far as they are there.
        most: see check_members.
        within: see open_regular.

    Raises FileNotFoundError where there is none, and ValueError, OSError, zipfile.BadZipFile or whatever else zipfile
    thinks of for one that cannot be read.
    """
    with open_regular(path, within) as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("no zip archive of arrays, or cut short")
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            check_members(archive, os.fstat(file.fileno()).st_size, most)
            found = {}
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name != member.filename and (names is None or name in names):
                    try:
                        found[name] = _array(archive, member)
                    except Exception as error:
                        raise ValueError(f"{name[:60]}: {printable(error, 200) or type(error).__name__}") from error
            return found


def array_names(path: Path) -> list[str]:
    """The names of the arrays that an npz file holds."""
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        return [m.filename.removesuffix(".npy") for m in archive.infolist() if m.filename.endswith(".npy")]


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    import numpy as np

    with archive.open(member) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a header that is no Python, or of Python 2
        start = io.BytesIO(stream.read(1 << 16))  # a header has at most 10000 characters, as numpy sees to
        check_header(start, member.file_size)
    with archive.open(member) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = np.lib.format.read_array(stream, allow_pickle=False)
        if stream.read(1):
            raise ValueError("there is more than one array in a part")
    return array


def check_header(start: IO[bytes], size: int) -> None:
    """Raises ValueError where the array that a .npy file of `size` bytes announces is not as large as the file."""
    from numpy.lib import format as npy

    version = npy.read_magic(start)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array is of the format {version}, which vaerun does not read")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(start)
    if dtype.hasobject:
        raise ValueError("Object arrays are read by code that the file brings: refused")
    count = math.prod(shape)
    if any(length < 0 for length in shape) or count * dtype.itemsize != size - start.tell() or count > max(1, size):
        raise ValueError(f"an array's shape {list(shape)[:6]} is not that of the {size} bytes that it has")
