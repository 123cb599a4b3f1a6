"""A comparison in TensorBoard: its text, its figure, and scalars table/METRIC/ROW over the columns."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from vaerun.errors import InputError, RunError
from vaerun.report.comparison import Comparison
from vaerun.tracking import tensorboard as events
from vaerun.tracking.tensorboard import EventWriter

EVENTS_FOLDER = "table"
MAXIMUM_STEP = 2**62  # event files store steps as int64


def write_events(tables: Sequence[Comparison], text: str, picture: bytes) -> Path:
    """Write events into FOLDER/table, replacing earlier ones, and return that folder.

    A scalar's step is the column's number (T), or its index where columns are not integers. A row without a value of
    the column's setting is drawn as a constant, for comparison.

    Raises RunError if the folder cannot be written, InputError if it is a link.
    """
    import numpy as np
    from PIL import Image
    from torch.utils.tensorboard import summary

    folder = tables[0].folder / EVENTS_FOLDER
    if folder.is_symlink():
        raise InputError(f"{folder} is a link, so writing would change its target: remove it")
    try:
        folder.mkdir(exist_ok=True)
        before = events.file_sizes(folder)
        try:
            with closing(EventWriter(folder, 0)) as writer:
                writer.add(summary.text("table", text))
                with Image.open(io.BytesIO(picture)) as image:
                    writer.add(summary.image("table", np.asarray(image.convert("RGB")), dataformats="HWC"))
                for table in tables:
                    for tag, step, value in scalars(table):
                        writer.add(summary.scalar(tag, value), step)
                writer.flush(disk=True)
        except OSError:
            with suppress(OSError):
                events.truncate(folder, before)
            raise
        for name in before:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def scalars(table: Comparison) -> list[tuple[str, int, float]]:
    """(tag, step, mean) of all cells that have a mean."""
    columns = [column for column in table.columns if column != table.empty]
    integers = bool(table.steps) and all(0 <= v <= MAXIMUM_STEP and v.is_integer() for v in table.steps.values())
    steps = {column: int(table.steps[column]) if integers else i for i, column in enumerate(columns)}
    points = []
    for row in table.rows:
        tag = f"table/{_tag(table.metric)}/{_tag(row)}"
        row_columns = {column for r, column in table.cells if r == row}
        for column in row_columns:
            mean = table.cells[row, column].mean
            if mean is None:
                continue
            if column != table.empty:
                points.append((tag, steps[column], mean))
            elif row_columns == {column}:
                points += [(tag, step, mean) for step in steps.values()] or [(tag, 0, mean)]
    return sorted(points)


def _tag(text: str) -> str:
    return "".join(c if c.isalnum() or c in "_-+./ ,=" else "_" for c in text).replace(" ", "_")
