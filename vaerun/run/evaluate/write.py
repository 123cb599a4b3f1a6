"""Writing the results of an evaluation: per_example.npz, arrays, figures and TensorBoard."""

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


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write arrays by name to a compressed npz file."""
    buffer = io.BytesIO()
    # What numpy.savez_compressed does, which does not take an array called `file`.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    write_atomically(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, Any]:
    """Read the arrays of an npz file; none where it does not exist. Raises InputError if it cannot be read."""
    try:
        return read_npz(path)
    except FileNotFoundError:
        return {}
    except Exception as error:  # numpy raises many types for a damaged archive
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
    """Write everything but result.json.

    Arguments:
        folder: the run directory.
        results: to write.
        prefix: of the names of metrics: the split, or the evaluation's label and split.
        log: receives metrics and pictures.
        step, epoch: of the evaluated parameters.
        label: of a later evaluation, whose values per image, arrays and figures are stored alongside the run's.
    """
    scope = f"{label}/" if label else ""
    existing = read_arrays(folder / "per_example.npz") if label else {}
    per_image = {f"{scope}{name}": value.numpy() for name, value in results.per_image.items()}
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
    """The metrics by their names in result.json."""
    return {f"{prefix}/{name}": value for name, value in results.metrics.items()}


def described_metrics(results: EvaluationResults, protocol: dict[str, Any], prefix: str) -> list[tuple[str, str, str]]:
    """(name, value, description) of each metric."""
    return metric_rows(prefixed_metrics(results, prefix), protocol, prefix)
