"""Reads files of tensors and plain values written by torch.save, validating them before torch opens them.

torch.load(weights_only=True) executes no code from a file but trusts its sizes: a tensor of a few bytes, or a
compressed archive, can declare terabytes. Here the members of the archive are checked first. Its pickle is then
interpreted by an unpickler restricted to dictionaries, lists, numbers, strings and tensor declarations. torch is given
a new archive of the validated content, because two zip readers may see different members in the same file.
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
_MAXIMUM_PICKLE_BYTES = 8 * MIB  # size of a state without its tensors; interpreted twice, in Python
_MAXIMUM_VALUES = 64 * MIB  # number of values and characters in a state; shared ones count once per reference
_MAXIMUM_DIMENSIONS = 64  # as in torch
_SLACK_BYTES = 64 * MIB  # amount by which views and expanded tensors may exceed their storages


def read_tensors(path: Path, device: torch.device | str = "cpu", root: Path | None = None) -> Any:
    """Read a file written by torch.save, with its tensors on the given device.

    Raises OSError if it cannot be opened, and other exceptions (zipfile, pickle and torch raise a dozen types) if it is
    damaged, declares more data than it contains, or contains anything but tensors and plain values.
    """
    with open_regular(path, root) as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is not a torch archive, or truncated")
        file.seek(0)
        size = os.fstat(file.fileno()).st_size
        with zipfile.ZipFile(file) as archive:
            check_members(archive, size, size, compressed=False)
            validated = _validated_copy(archive, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings of torch
        return torch.load(validated, map_location=device, weights_only=True)


def _validated_copy(archive: zipfile.ZipFile, size: int) -> IO[bytes]:
    """Create a new archive of the validated members. Reading a member verifies its checksum."""
    names = archive.namelist()
    top = names[0].split("/")[0] if names else ""
    members = [n for n in names if n in (f"{top}/{k}" for k in ("data.pkl", "version", "byteorder"))]
    members += [n for n in names if n.startswith(f"{top}/data/")]
    state = f"{top}/data.pkl"
    if state not in members or archive.getinfo(state).file_size > _MAXIMUM_PICKLE_BYTES:
        raise ValueError("it holds no state, or one that is too large")
    storages = {n.rpartition("/")[2]: archive.getinfo(n).file_size for n in members if n.startswith(f"{top}/data/")}
    _count_values(_ValidatingUnpickler(archive.read(state), storages, size).load(), {})
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as output:
        for name in members:
            output.writestr(f"archive/{name.partition('/')[2]}", archive.read(name))
    copy.seek(0)
    return copy


@dataclass(frozen=True)
class _StorageType:
    item_bytes: int


@dataclass(frozen=True)
class _Storage:
    items: int
    item_bytes: int


class _Tensor:
    """A declared tensor that lies within its storage."""


def _count_values(value: Any, counts: dict[int, int]) -> int:
    """Count the values and characters in a structure; shared ones count once per reference.

    A few bytes can encode an exponential number: a list of two references to a list of two references, and so on.
    Raises UnpicklingError if there are too many, and RecursionError for a structure that contains itself.
    """
    if isinstance(value, str):
        return 1 + len(value)
    if not isinstance(value, dict | list | tuple):
        return 1
    if id(value) not in counts:
        children = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        count = 1
        for child in children:
            count += _count_values(child, counts)
            if count > _MAXIMUM_VALUES:
                raise pickle.UnpicklingError("its state expands to too many values")
        counts[id(value)] = count
    return counts[id(value)]


_REBUILD_TENSOR = object()


class _ValidatingUnpickler(pickle._Unpickler):
    """Interprets a state's pickle without creating a tensor.

    Derived from the pure-Python unpickler, since the C version allocates its memo up to any index in the file. Opcodes
    that torch's unpickler interprets differently (its BUILD sets a tensor's data) and keys that take forever to hash
    (nested tuples) are rejected, too; torch.save writes neither for a state.

    Arguments:
        content: content of data.pkl.
        storages: size in bytes of each member with tensor data, by key.
        size: size of the whole file in bytes.
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
        self.storages, self.bytes_left = storages, 2 * size + _SLACK_BYTES

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _REBUILD_TENSOR
        if module == "torch" and name in _ITEM_BYTES:
            return _StorageType(_ITEM_BYTES[name])
        raise pickle.UnpicklingError(f"it holds {module}.{name}, not only tensors and plain values"[:200])

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        # A state_dict stores the versions of its modules this way.
        if type(target) is not OrderedDict or type(state) is not dict or list(state) != ["_metadata"]:
            raise pickle.UnpicklingError("it sets the state of an object other than a state_dict")

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if function is OrderedDict and arguments == ():
            self.stack[-1] = OrderedDict()
        elif function is _REBUILD_TENSOR and type(arguments) is tuple:
            self.stack[-1] = self._tensor(*arguments)
        else:
            raise pickle.UnpicklingError("it constructs an object that torch.save does not write")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict):
            raise pickle.UnpicklingError("it sets items of an object that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise pickle.UnpicklingError(f"it has a dictionary with a key of type {type(key).__name__}")
            target[key] = value

    dispatch |= {
        pickle.BUILD[0]: load_build, pickle.REDUCE[0]: load_reduce, pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }  # fmt: skip

    def persistent_load(self, pid: Any) -> _Storage:
        tag, storage_type, key, _, items = pid
        if tag != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(items, int):
            raise pickle.UnpicklingError("a tensor's storage is malformed")
        if items < 0 or items * storage_type.item_bytes != self.storages.get(key):
            raise pickle.UnpicklingError(f"a tensor's storage declares {items} items, which the file does not hold")
        return _Storage(items, storage_type.item_bytes)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
        layout = (offset, *size, *stride)
        all_int64 = all(type(n) is int and -(2**63) <= n < 2**63 for n in layout)
        if not (isinstance(storage, _Storage) and all_int64 and len(size) == len(stride) <= _MAXIMUM_DIMENSIONS):
            raise pickle.UnpicklingError("a tensor is malformed")
        count = math.prod(size)
        end = offset + (1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0)
        if min(layout) < 0 or end > storage.items:
            raise pickle.UnpicklingError(f"a tensor of size {list(size)[:6]} exceeds its storage")
        self.bytes_left -= count * storage.item_bytes
        if self.bytes_left < 0:
            raise pickle.UnpicklingError("its tensors declare more data than the file holds")
        return _Tensor()


def number_type(tensor: torch.Tensor) -> tuple[bool, bool]:
    """Return (is floating point, is complex); torch silently converts between these types when it loads a state."""
    return tensor.is_floating_point(), tensor.is_complex()
