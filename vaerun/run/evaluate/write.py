"""Writes the results of an evaluation: per_example.npz, arrays, figures and TensorBoard files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from vaerun.errors import InputError
from vaerun.evaluation.plots.pictures import save_png
from vaerun.evaluation.results import EvaluationResults
from vaerun.run.evaluate.descriptions import metric_rows
from vaerun.storage.atomic import write_atomically
from vaerun.storage.npz import read_npz
from vaerun.text import printable
from vaerun.tracking.logger import NullLogger, RunLogger

EVALUATING = "memory ran out in a step of the evaluation that cannot be split: "
EVALUATING += "lower evaluation.images, or drop what was added to the evaluation"
WRITING = "memory ran out while writing the evaluation: lower evaluation.images, or set evaluation.arrays=false"


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write named arrays to a compressed npz file."""
    buffer = io.BytesIO()
    # Like numpy.savez_compressed, which does not accept an array named `file`.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    write_atomically(path, buffer.getvalue())


def id_column(ids: np.ndarray) -> str:
    """Name of a column of ids: `row` in the array of the data's source, or `file`."""
    return "row" if ids.dtype.kind in "iu" else "file"


def read_arrays(path: Path) -> dict[str, Any]:
    """Read the arrays of an npz file; empty if the file does not exist. Raises InputError if it cannot be read."""
    try:
        return read_npz(path)
    except FileNotFoundError:
        return {}
    except Exception as error:  # numpy raises many types of errors for a damaged archive
        reason = printable(error, 200)
        raise InputError(f"{path} cannot be read ({reason}): move it away to evaluate again") from error


def write_evaluation(
    folder: Path,
    results: EvaluationResults,
    prefix: str,
    log: RunLogger | NullLogger,
    step: int,
    epoch: float,
    label: str = "",
) -> None:
    """Write everything except result.json.

    Arguments:
        folder: the run directory.
        results: results to write.
        prefix: prefix of metric names: the split, or the label and split of a later evaluation.
        log: receives metrics and pictures.
        step, epoch: step and epoch of the evaluated parameters.
        label: label of a later evaluation, whose per-image values, arrays and figures are stored alongside the run's.
    """
    scope = f"{label}/" if label else ""
    existing = read_arrays(folder / "per_example.npz") if label else {}
    columns = {name: value.numpy() for name, value in results.per_image.items()}
    if results.ids is not None:
        columns = {id_column(results.ids): results.ids} | columns
    per_image = {f"{scope}{name}": column for name, column in columns.items()}
    write_arrays(folder / "per_example.npz", existing | per_image)
    if results.arrays:
        write_arrays(folder / (f"arrays-{label}.npz" if label else "arrays.npz"), results.arrays)
    log.log_scalars(step, epoch, {f"{prefix}/{name}": v for name, v in results.metrics.items() if v is not None})
    figures = folder / "figures" / label
    figures.mkdir(parents=True, exist_ok=True)
    for name, picture in results.pictures.items():
        log.log_image(f"images/{scope}{name}", picture, step)
        write_atomically(figures / f"{name}.png", save_png(picture))


def prefixed_metrics(results: EvaluationResults, prefix: str) -> dict[str, float | None]:
    """Prefix the metrics, as they are named in result.json."""
    return {f"{prefix}/{name}": value for name, value in results.metrics.items()}


def described_metrics(results: EvaluationResults, protocol: dict[str, Any], prefix: str) -> list[tuple[str, str, str]]:
    """Rows (name, value, description) of the metrics."""
    return metric_rows(prefixed_metrics(results, prefix), protocol, prefix)
