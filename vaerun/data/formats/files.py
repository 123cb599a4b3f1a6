"""Which format a file or folder has, by its content and the names that the authors of a format gave to its files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from vaerun.data.array_names import match_names
from vaerun.data.arrays import FIELDS, Arrays
from vaerun.data.formats import amat, idx, matlab
from vaerun.data.formats.omniglot import is_omniglot, omniglot
from vaerun.data.formats.reading import reading
from vaerun.errors import InputError
from vaerun.storage.npz import check_header
from vaerun.storage.untrusted import open_regular

SETS = {"IDX": (idx.FILE_NAME, idx.idx_set), "binarised MNIST": (amat.FILE_NAME, amat.binarised_mnist)}
"""Formats whose data sets consist of several files in a folder: their names, and the reader of all."""

TABLES = (".arrow", ".parquet", ".feather")
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib")
NPY = b"\x93NUMPY"


def read_original(path: Path) -> Arrays | None:
    """The data set of a file, or of a folder with the files of one; None for an .npz or unknown file.

    Raises InputError for damaged files and for formats that another setting reads, or none.
    """
    if path.is_dir():
        return _read_folder(path)
    if (found := _set_of(path)) is not None:
        return SETS[found][1](_companions(path, found), path.parent)
    with reading(path, "file"), open_regular(path) as file:
        start = file.read(132)
    if path.suffix.lower() in TABLES or start.startswith((b"PAR1", b"ARROW1")):
        raise InputError(f"{path}: a table of Arrow or Parquet: data=hf data.path={path} reads it")
    if path.suffix.lower() in PICKLES or (start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5"):
        raise InputError(f"{path}: a pickle, which may run code and is never opened: save the arrays with numpy.savez")
    if start.startswith(NPY):
        return _images_alone(_read_npy(path))
    if path.suffix.lower() == ".mat" or start.startswith((b"MATLAB", matlab.HDF5)):
        return _read_matlab(path)
    if idx.is_idx(start):
        return _images_alone(idx.read_idx(path))
    return None


def files_read(path: Path) -> list[Path]:
    """The files that are read along with this one, itself included."""
    found = _set_of(path)
    return [path] if found is None else _companions(path, found)


def _set_of(path: Path) -> str | None:
    return next((name for name, (pattern, _) in SETS.items() if pattern.fullmatch(path.name)), None)


def _companions(path: Path, name: str) -> list[Path]:
    """The files of the same data set in the folder of this one."""
    pattern = SETS[name][0]
    own = _set_name(pattern, path)
    named = (other for other in path.parent.iterdir() if pattern.fullmatch(other.name))
    return sorted(other for other in named if _set_name(pattern, other) == own)


def _set_name(pattern: re.Pattern[str], path: Path) -> str | None:
    match = pattern.fullmatch(path.name)
    return match and match.groupdict().get("set")


def _read_folder(folder: Path) -> Arrays:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    found = {name: [f for f in files if pattern.fullmatch(f.name)] for name, (pattern, _) in SETS.items()}
    present = [name for name, members in found.items() if members]
    if len(present) == 1:
        return SETS[present[0]][1](found[present[0]], folder)
    if present:
        raise InputError(f"{folder}: has files of {' and '.join(present)}: move them into folders of their own")
    if any(path.suffix.lower() in TABLES for depth in ("*", "*/*") for path in folder.glob(depth)):
        raise InputError(f"{folder}: has tables of Arrow or Parquet: data=hf data.path={folder} reads them")
    raise InputError(
        f"{folder}: a folder, without files of MNIST's format (train-images-idx3-ubyte.gz, ...) or of the binarised "
        "MNIST (binarized_mnist_train.amat, ...): name a file, or read images with data=folder"
    )


def _images_alone(images: np.ndarray) -> Arrays:
    return Arrays(images, None, None, None, "official")


def _read_npy(path: Path) -> np.ndarray:
    with reading(path, ".npy file"), open_regular(path) as file:
        check_header(file, os.fstat(file.fileno()).st_size)
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_matlab(path: Path) -> Arrays:
    arrays = matlab.read_matlab(path)
    if is_omniglot(arrays):
        return omniglot(arrays, str(path))
    chosen, notes = match_names(list(arrays), str(path))
    fields: dict[str, Any] = {field: arrays[chosen[field]] if field in chosen else None for field in FIELDS}
    return Arrays(**fields, split="official", notes=tuple(notes))
