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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import torch

from vaerun.storage.npz import check_members
from vaerun.storage.untrusted import MIB, open_regular

_ITEM_BYTES = {
    "FloatStorage": 4, "DoubleStorage": 8, "HalfStorage": 2, "BFloat16Storage": 2, "ByteStorage": 1, "CharStorage": 1,
    "ShortStorage": 2, "IntStorage": 4, "LongStorage": 8, "BoolStorage": 1, "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
}  # fmt: skip
_PICKLE_BYTES = 8 * MIB  # of a state without its tensors; read twice, in Python
_EXPANDED = 64 * MIB  # values and letters of a state, each counted wherever it stands: what looks at all of it takes
_DIMENSIONS = 64  # as many as torch has
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
    _expanded(_Announced(archive.read(state), storages, size).load(), {})
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


def _expanded(value: Any, known: dict[int, int]) -> int:
    """How many values and letters this holds, those that stand in several places counted in each.

    A list of two lists of two lists ... is a few bytes of file. Raises UnpicklingError where there are too many, and
    RecursionError for one that holds itself.
    """
    if isinstance(value, str):
        return 1 + len(value)
    if not isinstance(value, dict | list | tuple):
        return 1
    if id(value) not in known:
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        count = 1
        for part in parts:
            count += _expanded(part, known)
            if count > _EXPANDED:
                raise pickle.UnpicklingError("its state holds one part in too many places")
        known[id(value)] = count
    return known[id(value)]


_Rebuild = object()


class _Announced(pickle._Unpickler):
    """Goes through a state's pickle without making a tensor of it.

    It is Python's own reader written in Python: the one in C allocates what an index into its memory asks for. Refused
    too, as no part of what torch.save writes of a state: what torch's reader makes more of than Python's does (by BUILD
    it makes a tensor anew), and keys whose hash takes for ever (tuples of tuples of tuples).

    Arguments:
        content: of data.pkl.
        storages: bytes of each member with a tensor's data, by key.
        size: of the whole file in bytes.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]]
        for code in (
            pickle.PROTO, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT,
            pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE, pickle.EMPTY_DICT,
            pickle.EMPTY_LIST, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
            pickle.SETITEM, pickle.SETITEMS, pickle.APPEND, pickle.APPENDS, pickle.BINGET, pickle.LONG_BINGET,
            pickle.BINPUT, pickle.LONG_BINPUT, pickle.GLOBAL, pickle.REDUCE, pickle.BUILD, pickle.BINPERSID,
        )
    }  # fmt: skip

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, content: bytes, storages: dict[str, int], size: int) -> None:
        super().__init__(io.BytesIO(content))
        self.storages, self.left = storages, 2 * size + _SLACK_BYTES

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Rebuild
        if module == "torch" and name in _ITEM_BYTES:
            return _Type(_ITEM_BYTES[name])
        raise pickle.UnpicklingError(f"it holds {module}.{name}, and not only tensors and plain values"[:200])

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        # A module's state has its versions so.
        if type(made) is not OrderedDict or type(state) is not dict or list(state) != ["_metadata"]:
            raise pickle.UnpicklingError("it holds more than tensors and plain values: one is changed when it is made")

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if function is OrderedDict and arguments == ():
            self.stack[-1] = OrderedDict()
        elif function is _Rebuild and type(arguments) is tuple:
            self.stack[-1] = self._tensor(*arguments)
        else:
            raise pickle.UnpicklingError("a part of it is not made as torch does it")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self) -> None:
        self._set(self.pop_mark())

    def _set(self, items: list[Any]) -> None:
        made = self.stack[-1]
        if type(made) not in (dict, OrderedDict):
            raise pickle.UnpicklingError("it puts values into what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise pickle.UnpicklingError(f"a dictionary of it has a key of kind {type(key).__name__}")
            made[key] = value

    dispatch |= {
        pickle.BUILD[0]: load_build, pickle.REDUCE[0]: load_reduce, pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }  # fmt: skip

    def persistent_load(self, pid: Any) -> _Storage:
        word, kind, key, _, items = pid
        if word != "storage" or not isinstance(kind, _Type) or not isinstance(items, int):
            raise pickle.UnpicklingError("a tensor's storage is not described as torch does it")
        if items < 0 or items * kind.item_bytes != self.storages.get(key):
            raise pickle.UnpicklingError(f"a tensor's storage is said to have {items} items, which the file has not")
        return _Storage(items, kind.item_bytes)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
        whole = (offset, *size, *stride)
        numbers = all(type(n) is int and -(2**63) <= n < 2**63 for n in whole)
        if not (isinstance(storage, _Storage) and numbers and len(size) == len(stride) <= _DIMENSIONS):
            raise pickle.UnpicklingError("a tensor is not described as torch does it")
        count = math.prod(size)
        end = offset + (1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0)
        if min(whole) < 0 or end > storage.items:
            raise pickle.UnpicklingError(f"a tensor of size {list(size)[:6]} does not lie within its data")
        self.left -= count * storage.item_bytes
        if self.left < 0:
            raise pickle.UnpicklingError("its tensors claim more than the file holds")
        return _Tensor()


def kind(tensor: torch.Tensor) -> tuple[bool, bool]:
    """Whether it holds fractions, or complex numbers: torch would turn the ones into the others."""
    return tensor.is_floating_point(), tensor.is_complex()
