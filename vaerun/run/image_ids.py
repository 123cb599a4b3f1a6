"""images.npz: which image is which, for every split in order, so that a line of per_example.npz leads back to it.

An image is named by its row in the array of the source (int), or by its file (str). Images that vaerun held out, for
validation or test, keep the row that they had in the source's training part.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vaerun.data.dataset import ImageData
from vaerun.data.description import ids_digest
from vaerun.errors import InputError
from vaerun.run.evaluate.write import write_arrays
from vaerun.storage.npz import read_npz
from vaerun.text import printable

IDS_FILE = "images.npz"
SPLITS = ("train", "validation", "test")


def write_image_ids(folder: Path, data: ImageData) -> None:
    """Write the ids of each split to the run directory."""
    ids = {name: getattr(data, name).ids for name in SPLITS}
    narrow = all(i.dtype.kind == "i" and i.max(initial=0) < 2**31 for i in ids.values())
    write_arrays(folder / IDS_FILE, {name: i.astype(np.int32) if narrow else i for name, i in ids.items()})


def read_image_ids(folder: Path, result: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Read the ids [N] of each split from a run directory.

    Raises InputError if they are missing, as in runs of earlier versions, damaged, or not those of result.json.
    """
    path = folder / IDS_FILE
    try:
        arrays = read_npz(path, SPLITS, root=folder)
        recorded = {name: str(result["dataset"]["ids"][name]) for name in SPLITS}
        for name, digest in recorded.items():
            ids = arrays[name]
            if ids.ndim != 1 or ids.dtype.kind not in "iU" or ids_digest(ids) != digest:
                raise ValueError(f"{name} is not what result.json records")
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} has no {IDS_FILE}: an earlier version of vaerun wrote it, or the file was moved"
        ) from error
    except Exception as error:  # numpy raises many types of errors for a damaged archive
        raise InputError(f"{path} cannot be read ({printable(error, 200)}): restore the file") from error
    return arrays
