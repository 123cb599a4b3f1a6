"""A comparison for TensorBoard: text, picture and scalars table/METRIC/ROW over the columns."""

from __future__ import annotations

import io
from contextlib import closing, suppress
from pathlib import Path

from vaerun.errors import InputError, RunError
from vaerun.report.comparison import Comparison
from vaerun.tracking import tensorboard as events
from vaerun.tracking.tensorboard import EventWriter

EVENTS_FOLDER = "table"  # the folder of the events
MAXIMUM_STEP = 2**62  # below what TensorBoard's files hold


def write_events(table: Comparison, text: str, picture: bytes) -> Path:
    """Writes events into FOLDER/table, those of before replaced, and returns it.

    A scalar's step is the column's number (T), or the columns' order where they are no such numbers. A row without a
    column's value is the same at every step, so that the others stand against it.

    Raises RunError where it cannot be written, InputError where it is a link.
    """
    import numpy as np
    from PIL import Image
    from torch.utils.tensorboard import summary

    folder = table.folder / EVENTS_FOLDER
    if folder.is_symlink():
        raise InputError(f"{folder} is a link, and events would be written to where it leads: remove it")
    try:
        folder.mkdir(exist_ok=True)
        old = events.sizes(folder)
        try:
            with closing(EventWriter(folder, 0)) as board:
                board.add(summary.text("table", text))
                with Image.open(io.BytesIO(picture)) as image:
                    board.add(summary.image("table", np.asarray(image.convert("RGB")), dataformats="HWC"))
                for tag, step, value in scalars(table):
                    board.add(summary.scalar(tag, value), step)
                board.flush(disk=True)
        except OSError:
            with suppress(OSError):
                events.cut(folder, old)
            raise
        for name in old:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def scalars(table: Comparison) -> list[tuple[str, int, float]]:
    """(tag, step, mean) of all cells with a number."""
    columns = [column for column in table.columns if column != table.empty]
    whole = bool(table.steps) and all(0 <= v <= MAXIMUM_STEP and v.is_integer() for v in table.steps.values())
    steps = {column: int(table.steps[column]) if whole else i for i, column in enumerate(columns)}
    found = []
    for row in table.rows:
        tag = f"table/{_tag(table.metric)}/{_tag(row)}"
        own = {column for r, column in table.cells if r == row}
        for column in own:
            mean = table.cells[row, column].mean
            if mean is None:
                continue
            if column != table.empty:
                found.append((tag, steps[column], mean))
            elif own == {column}:
                found += [(tag, step, mean) for step in steps.values()] or [(tag, 0, mean)]
    return sorted(found)


def _tag(text: str) -> str:
    return "".join(c if c.isalnum() or c in "_-+./ ,=" else "_" for c in text).replace(" ", "_")
