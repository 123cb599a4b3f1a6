"""Which columns of a table are images and labels, and their values as arrays.

HuggingFace's `datasets` describes its columns (Image, ClassLabel, Array2D, ...) in the schema's metadata. Images are
structures with the bytes of an image file, bytes alone, or nested lists of numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vaerun.data.formats.tables import Table, import_pyarrow
from vaerun.errors import InputError
from vaerun.storage.json_files import parse_json
from vaerun.text import is_valid_unicode, printable

NO_COLUMN = "none"
LABEL_NAMES = ("label", "labels", "class", "target", "y")
"""Names of columns that are labels although nothing says so."""

MAXIMUM_LETTERS = 200  # of the name of a class; longer text is no class


@dataclass(frozen=True)
class Columns:
    """The columns of a data set.

    Attributes:
        image: name of the images' column.
        encoded: whether its images are image files, not numbers.
        label: name of the labels' column; None: no labels.
        class_names: name of each label; None: they name themselves.
        others: names of the columns that are not read.
    """

    image: str
    encoded: bool
    label: str | None
    class_names: tuple[str, ...] | None
    others: tuple[str, ...]


def choose_columns(table: Table, image_column: str | None, label_column: str | None) -> Columns:
    """The columns that the user names, or else those that can be meant.

    Raises InputError, which says what to set, if there is none or there are several; ValueError for a damaged schema.
    """
    schema, where = table.schema, str(table.path)
    if len(set(schema.names)) < len(schema.names):
        raise InputError(f"{where}: two columns have the same name: rename one")
    features = _features(schema)
    encoded = [name for name in schema.names if _is_encoded(_storage(schema.field(name).type))]
    nested = [name for name in schema.names if _is_nested(_storage(schema.field(name).type))]
    image = _choose(image_column, encoded or nested, [*encoded, *nested], schema.names, "image_column", "images", where)
    if image is None:
        listed = printable(", ".join(schema.names), 300) or "none"
        raise InputError(
            f"{where}: none of its columns ({listed}) holds images: bytes of image files, or lists of numbers"
        )
    labels = [name for name in schema.names if name != image and _is_label(schema.field(name).type)]
    likely = [name for name in labels if features.get(name, {}).get("_type") == "ClassLabel"]
    likely = likely or [name for name in labels if name.lower() in LABEL_NAMES]
    label = None
    if label_column != NO_COLUMN or NO_COLUMN in labels:
        label = _choose(label_column, likely, labels, schema.names, "label_column", "labels", where)
    others = tuple(name for name in schema.names if name not in (image, label))
    return Columns(image, image in encoded, label, _class_names(features.get(label or ""), where), others)


def _choose(
    named: str | None, likely: list[str], possible: list[str], names: list[str], key: str, what: str, where: str
) -> str | None:
    if named is not None:
        if named not in possible:
            reason = "cannot be" if named in names else "is not a column, so cannot be"
            listed = printable(", ".join(possible), 300)
            hint = f"choose {listed}" if possible else f"no column can; columns: {printable(', '.join(names), 300)}"
            raise InputError(f"{where}: data.{key}={named} {reason} {what}: {hint}")
        return named
    if len(likely) > 1:
        listed, none = printable(", ".join(likely), 300), " (or none)" if what == "labels" else ""
        raise InputError(f"{where}: columns {listed} could each be the {what}: set data.{key} to one of them{none}")
    return likely[0] if likely else None


def _features(schema: Any) -> dict[str, Any]:
    """What `datasets` says about each column; empty if it has not written the table."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        features = parse_json(text.decode("utf-8"))["info"]["features"] if text else {}
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("its description by datasets (metadata 'huggingface') is damaged") from None


def _class_names(feature: dict[str, Any] | None, where: str) -> tuple[str, ...] | None:
    names = (feature or {}).get("names")
    if (feature or {}).get("_type") != "ClassLabel" or names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) and len(name) <= MAXIMUM_LETTERS for name in names):
        raise InputError(f"{where}: the names of its classes are no list of names: repair or remove its metadata")
    return tuple(map(printable, names))


def _storage(kind: Any) -> Any:
    """The type in which an extension type, such as an Array2D, is stored."""
    return getattr(kind, "storage_type", kind)


def _is_binary(kind: Any) -> bool:
    types = import_pyarrow().types
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_encoded(kind: Any) -> bool:
    if import_pyarrow().types.is_struct(kind):
        return any(kind.field(i).name == "bytes" and _is_binary(kind.field(i).type) for i in range(kind.num_fields))
    return _is_binary(kind)


def _is_list(kind: Any) -> bool:
    types = import_pyarrow().types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_nested(kind: Any) -> bool:
    types = import_pyarrow().types
    depth = 0
    while _is_list(kind):
        kind, depth = _storage(kind.value_type), depth + 1
    return depth > 0 and bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _is_label(kind: Any) -> bool:
    types = import_pyarrow().types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        types.is_integer(kind) or types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind)
    )


# -- values -----------------------------------------------------------------------------------------------------------


def image_files(table: Table, array: Any, row: int) -> Iterator[tuple[str, bytes]]:
    """What to call each image of a column, whose first one is in this row, and the bytes of its file.

    Raises InputError for images that are missing or elsewhere: nothing outside the table is opened.
    """
    array = getattr(array, "storage", array)
    if import_pyarrow().types.is_struct(array.type):
        names = [array.type.field(i).name for i in range(array.type.num_fields)]
        array = array.flatten()[names.index("bytes")]
    for i, value in enumerate(array):
        content = value.as_py()
        if content is None:
            raise InputError(
                f"{table.path}: row {row + i} has no image, or only the path of one: save the data set with its images"
            )
        yield f"{table.path}: row {row + i}", content


def nested_values(table: Table, array: Any) -> np.ndarray:
    """Lists of numbers as an array. Raises InputError if they differ in length."""
    shape = [len(array)]
    array = getattr(array, "storage", array)
    while _is_list(array.type):
        values = getattr(array.flatten(), "storage", array.flatten())
        length, rest = divmod(len(values), max(1, len(array)))
        if rest or array.null_count or not _all_of_length(array, length):
            raise InputError(f"{table.path}: its images differ in shape, or some are missing: make them the same shape")
        shape.append(length)
        array = values
    if array.null_count:
        raise InputError(f"{table.path}: some of its pixels are missing: repair or remove these images")
    return np.asarray(array.to_numpy(zero_copy_only=False)).reshape(shape)


def _all_of_length(array: Any, length: int) -> bool:
    import pyarrow.compute

    lengths = pyarrow.compute.list_value_length(array).to_numpy(zero_copy_only=False)
    return bool((lengths == length).all())


def label_values(table: Table, array: Any, row: int) -> np.ndarray:
    """Labels [N], integers or text (dtype object), of a column whose first value is in this row.

    Raises InputError for missing ones, and for text that is too long for the name of a class.
    """
    types = import_pyarrow().types
    hint = f"set data.label_column={NO_COLUMN} to read no labels"
    if array.null_count:
        missing = next(i for i, value in enumerate(array) if not value.is_valid)
        raise InputError(f"{table.path}: row {row + missing} has no label: repair it, or {hint}")
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    values = np.asarray(array.to_numpy(zero_copy_only=False))
    if values.dtype.kind == "O":
        for i, text in enumerate(values):
            if len(text) > MAXIMUM_LETTERS or not is_valid_unicode(text):
                raise InputError(f"{table.path}: the label in row {row + i} is no name of a class: {hint}")
    return values
