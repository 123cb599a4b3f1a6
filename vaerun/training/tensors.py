"""Files of tensors and plain values as torch.save writes them, looked through before torch opens them.

torch.load(weights_only=True) runs no code of a file, but believes its sizes: a tensor of a few bytes of file can claim
terabytes, and so can a compressed archive. Here the archive's members are weighed first, and its pickle is gone through
by a reader that knows dictionaries, lists, numbers, text and the announcement of tensors, nothing else. What torch is
given then is an archive made anew of what was looked at: two readers of zip files can see different things in one.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from vaerun.archives import check_members
from vaerun.foreign import MIB, open_regular

_ITEM_BYTES = {
    "FloatStorage": 4, "DoubleStorage": 8, "HalfStorage": 2, "BFloat16Storage": 2, "ByteStorage": 1, "CharStorage": 1,
    "ShortStorage": 2, "IntStorage": 4, "LongStorage": 8, "BoolStorage": 1, "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
}  # fmt: skip
_PICKLE_BYTES = 64 * MIB  # of a state without its tensors
_SLACK_BYTES = 64 * MIB  # that tensors may have beyond their storages: views of the same, expanded ones


def read_tensors(path: Path, device: torch.device | str = "cpu", within: Path | None = None) -> Any:
    """What a file written by torch.save holds, on a device.

    Raises OSError where it cannot be opened, and another Exception (zipfile, pickle and torch know a dozen) for one
    that is damaged, claims more than it holds, or holds anything but tensors and plain values.
    """
    with open_regular(path, within) as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no archive of torch's, or cut short")
        file.seek(0)
        size = os.fstat(file.fileno()).st_size
        with zipfile.ZipFile(file) as archive:
            check_members(archive, size, size, compressed=False)
            checked = _checked(archive, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own affairs
        return torch.load(checked, map_location=device, weights_only=True)


def _checked(archive: zipfile.ZipFile, size: int) -> IO[bytes]:
    """The archive made anew, once its pickle has been gone through. Reading the members compares their checksums."""
    names = archive.namelist()
    top = names[0].split("/")[0] if names else ""
    kept = [n for n in names if n in (f"{top}/{k}" for k in ("data.pkl", "version", "byteorder"))]
    kept += [n for n in names if n.startswith(f"{top}/data/")]
    state = f"{top}/data.pkl"
    if state not in kept or archive.getinfo(state).file_size > _PICKLE_BYTES:
        raise ValueError("it holds no state, or one too large")
    storages = {n.rpartition("/")[2]: archive.getinfo(n).file_size for n in kept if n.startswith(f"{top}/data/")}
    _Announced(archive.read(state), storages, size).load()
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w", zipfile.ZIP_STORED) as clean:
        for name in kept:
            clean.writestr(f"archive/{name.partition('/')[2]}", archive.read(name))
    found.seek(0)
    return found


@dataclass(frozen=True)
class _Type:
    item_bytes: int


@dataclass(frozen=True)
class _Storage:
    items: int
    item_bytes: int


class _Tensor:
    """A tensor that was announced; it has been found to lie within its storage."""


class _Announced(pickle._Unpickler):
    """Goes through a state's pickle without making a tensor of it.

    It is Python's own reader written in Python: the one in C allocates what an index into its memory asks for.

    Arguments:
        content: of data.pkl.
        storages: bytes of each member with a tensor's data, by key.
        size: of the whole file in bytes.
    """

    dispatch = {  # noqa: RUF012
        code[0]: pickle._Unpickler.dispatch[code[0]]
        for code in (
            pickle.PROTO, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT,
            pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE, pickle.EMPTY_DICT,
            pickle.EMPTY_LIST, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
            pickle.SETITEM, pickle.SETITEMS, pickle.APPEND, pickle.APPENDS, pickle.BINGET, pickle.LONG_BINGET,
            pickle.BINPUT, pickle.LONG_BINPUT, pickle.GLOBAL, pickle.REDUCE, pickle.BUILD, pickle.BINPERSID,
        )
    }  # fmt: skip

    def __init__(self, content: bytes, storages: dict[str, int], size: int) -> None:
        super().__init__(io.BytesIO(content))
        self.storages, self.left = storages, 2 * size + _SLACK_BYTES

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if module == "torch" and name in _ITEM_BYTES:
            return _Type(_ITEM_BYTES[name])
        raise pickle.UnpicklingError(f"it holds {module}.{name}, and not only tensors and plain values"[:200])

    def persistent_load(self, pid: Any) -> _Storage:
        word, kind, key, _, items = pid
        if word != "storage" or not isinstance(kind, _Type) or not isinstance(items, int):
            raise pickle.UnpicklingError("a tensor's storage is not described as torch does it")
        if items < 0 or items * kind.item_bytes != self.storages.get(key):
            raise pickle.UnpicklingError(f"a tensor's storage is said to have {items} items, which the file has not")
        return _Storage(items, kind.item_bytes)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
        whole = (offset, *size, *stride)
        if not isinstance(storage, _Storage) or len(size) != len(stride) or any(type(n) is not int for n in whole):
            raise pickle.UnpicklingError("a tensor is not described as torch does it")
        count = math.prod(size)
        end = offset + (1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0)
        if min(whole) < 0 or end > storage.items:
            raise pickle.UnpicklingError(f"a tensor of size {list(size)[:6]} does not lie within its data")
        self.left -= count * storage.item_bytes
        if self.left < 0:
            raise pickle.UnpicklingError("its tensors claim more than the file holds")
        return _Tensor()
