"""Data sets of HuggingFace on disk: folders of `save_to_disk`, of its cache or of a download, and tables alone.

Only tables are read. Nothing is downloaded, no script of a data set is run, and `datasets` itself is not needed.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vaerun.data.arrays import PARTS, Arrays
from vaerun.data.decoding import check_channels, parse_size, read_images
from vaerun.data.formats.columns import Columns, choose_columns, image_files, label_values, nested_values
from vaerun.data.formats.reading import reading
from vaerun.data.formats.tables import SUFFIXES, Table, open_table
from vaerun.errors import InputError
from vaerun.storage.json_files import read_json
from vaerun.text import printable

SPELLINGS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
}
SHARD = re.compile(r"(?P<name>.*)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<rest>.*)")
WORK_FILES = ("cache-", "indices", "tmp")
"""How the names of tables begin that `datasets` keeps next to those of a data set."""

STATE = "state.json"
DEPTHS = ("*", "*/*", "*/*/*")


def read_tables(
    path: Path,
    image_size: int | Sequence[int] | None,
    channels: int | None,
    image_column: str | None,
    label_column: str | None,
) -> Arrays:
    """The data set of a table or a folder of tables. Raises InputError for unusable ones.

    Arguments:
        path: file or folder.
        image_size, channels: as for `vaerun.data.folders.folder`; without effect on images that are lists of numbers.
        image_column, label_column: names of columns; None: the only ones that can be meant.
    """
    size = parse_size(image_size)
    check_channels(channels)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; expected a data set saved by datasets, or Parquet files")
    files, notes = find_parts(path) if path.is_dir() else ({"train": [path]}, [])
    parts = {part: [open_table(file) for file in members] for part, members in files.items()}
    tables = [table for members in parts.values() for table in members]
    for part, members in parts.items():
        if not any(table.rows for table in members):
            raise InputError(f"{members[0].path}: the {part} part has no rows: remove its tables")
    with reading(tables[0].path, "table"):  # names of columns may be no UTF-8
        columns = choose_columns(tables[0], image_column, label_column)
    used = [name for name in (columns.image, columns.label) if name is not None]
    for table in tables[1:]:
        with reading(table.path, "table"):
            if any(name not in table.schema.names or _type(table, name) != _type(tables[0], name) for name in used):
                raise InputError(f"{table.path}: its columns {' and '.join(used)} are not those of {tables[0].path}")
    labels: dict[str, list[np.ndarray]] = {part: [] for part in parts}
    if columns.encoded:
        contents = _contents(parts, columns, labels)
        rows, stored = sum(table.rows for table in tables), sum(table.size for table in tables)
        decoded = read_images(contents, rows, stored, size, channels)
        stops = np.cumsum([sum(table.rows for table in members) for members in parts.values()])
        images = dict(zip(parts, np.split(decoded.images, stops[:-1]), strict=True))
        notes, warnings = [*notes, *decoded.notes], decoded.warnings
    else:
        images = {part: np.concatenate(list(_nested(m, columns, labels[part]))) for part, m in parts.items()}
        warnings = []
    fields: dict[str, Any] = {f"{part}_images": images.get(part) for part in PARTS}
    for part in PARTS:
        fields[f"{part}_labels"] = _part_labels(part, labels.get(part, []), notes)
    notes.append(
        f"images of column {columns.image}, " + (f"labels of {columns.label}" if columns.label else "no labels")
    )
    if columns.others:
        notes.append(f"columns not read: {', '.join(columns.others)}")
    return Arrays(
        **fields,
        split="official",
        class_names=columns.class_names,
        notes=tuple(printable(note, 500) for note in notes),
        warnings=tuple(warnings),
    )


def _type(table: Table, name: str) -> Any:
    return table.schema.field(name).type


def _batches(table: Table, columns: Columns, labels: list[np.ndarray]) -> Iterator[tuple[int, Any]]:
    """First row and images of each batch of rows of a table; appends its labels to `labels`."""
    row = 0
    for batch in table.read([name for name in (columns.image, columns.label) if name is not None]):
        if columns.label is not None:
            labels.append(label_values(table, batch.column(columns.label), row))
        if row + batch.num_rows > table.rows:
            break
        yield row, batch.column(columns.image)
        row += batch.num_rows
    if row != table.rows:
        raise InputError(f"{table.path}: damaged: it declares {table.rows} rows and has others")


def _contents(
    parts: dict[str, list[Table]], columns: Columns, labels: dict[str, list[np.ndarray]]
) -> Iterator[tuple[str, BinaryIO]]:
    """Name and content of each image file of all parts."""
    for part, tables in parts.items():
        for table in tables:
            for row, array in _batches(table, columns, labels[part]):
                for name, content in image_files(table, array, row):
                    yield name, io.BytesIO(content)


def _nested(tables: list[Table], columns: Columns, labels: list[np.ndarray]) -> Iterator[np.ndarray]:
    """The images of a part that are lists of numbers, by batches of rows."""
    for table in tables:
        yield from (nested_values(table, array) for _, array in _batches(table, columns, labels))


def _part_labels(part: str, labels: list[np.ndarray], notes: list[str]) -> np.ndarray | None:
    """All labels of a part; None if there are none, which a test part may say by -1."""
    if not labels:
        return None
    whole = np.concatenate(labels)
    if part != "train" and whole.dtype.kind == "i" and (whole == -1).all():
        notes.append(f"the labels of the {part} part are withheld (-1)")
        return None
    return whole


# -- files ------------------------------------------------------------------------------------------------------------


def find_parts(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The tables of each part of a data set in a folder, in the order of their rows, and notes.

    A part is named by a file or a folder (SPELLINGS); if nothing names one, all tables are the training part. Raises
    InputError if there are no tables, those of several data sets, or only some of the tables of a part.
    """
    tables = [path for depth in DEPTHS for path in sorted(root.glob(depth)) if _is_table(path)]
    for folder in sorted({path.parent for path in tables}):
        if (folder / STATE).exists():
            saved = _saved_tables(folder)
            tables = [path for path in tables if path.parent != folder] + saved
    if not tables:
        scripts = " (scripts of a data set are never run)" if any(root.glob("*.py")) else ""
        raise InputError(
            f"{root}: no tables (.arrow, .parquet) found{scripts}: save the data set by save_to_disk or to_parquet of "
            "datasets; data=folder reads image files"
        )
    _check_shards(tables)
    found: dict[str, list[Path]] = {}
    places: dict[tuple[str, ...], Path] = {}
    for path in tables:
        *folders, name = path.relative_to(root).parts
        part = _part_of(Path(name).stem) or next(filter(None, map(_part_of, reversed(folders))), "")
        found.setdefault(part, []).append(path)
        place = (*(folder for folder in folders if _part_of(folder) is None), path.suffix.lower())
        places.setdefault(place, path)
    if len(places) > 1:
        first, second = list(places.values())[:2]
        raise InputError(
            f"{root}: {first.relative_to(root)} and {second.relative_to(root)} look like different data sets: set "
            "data.path to the folder, or the file, of one"
        )
    other = found.pop("", [])
    if not found:
        return {"train": other}, []
    if "train" not in found:
        raise InputError(
            f"{root}: has {' and '.join(found)} tables but no training part ({', '.join(SPELLINGS['train'])}): add it, "
            f"or set data.path={next(iter(found.values()))[0]} to split off parts"
        )
    parts = {part: found[part] for part in PARTS if part in found}
    notes = [f"given parts: {', '.join(parts)}"] if len(parts) > 1 else []
    return parts, notes + ([f"left out, of no part: {', '.join(path.name for path in other)}"] if other else [])


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith((".", *WORK_FILES))


def _part_of(name: str) -> str | None:
    """The part that a name stands for by its last word that does, as in mnist-train-00000-of-00001."""
    words = reversed(re.split("[^a-z]+", name.lower()))
    return next((part for word in words for part, known in SPELLINGS.items() if word in known), None)


def _saved_tables(folder: Path) -> list[Path]:
    """The tables that the state of a saved data set names, in its order."""
    with reading(folder / STATE, "state of a saved data set"):
        state = read_json(folder / STATE, root=folder)
        names = [Path(entry["filename"]).name for entry in state["_data_files"]]
        mapped = state.get("_indices_data_files") or state.get("_indices_files")
    if mapped:
        raise InputError(
            f"{folder}: an old version of datasets saved a selection of rows: open it and save it again after "
            "flatten_indices()"
        )
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"{folder}: {name} is missing, which {STATE} names: copy it into the folder")
    return [folder / name for name in names]


def _check_shards(tables: Sequence[Path]) -> None:
    """Raise InputError if tables are missing, by their names: train-00000-of-00002."""
    shards: dict[tuple[Path, str, int], set[int]] = {}
    for path in tables:
        if match := SHARD.fullmatch(path.stem):
            key = path.parent, match["name"], int(match["count"])
            shards.setdefault(key, set()).add(int(match["index"]))
    for (folder, name, count), indices in shards.items():
        if indices != set(range(count)):
            raise InputError(
                f"{folder}: {len(indices)} of {count} tables {name}-*-of-{count:05} are there: the download or copy "
                "is incomplete; get the others"
            )
