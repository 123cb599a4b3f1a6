"""Where an evaluation's results go: result.json, per_example.npz, figures and TensorBoard."""

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
    """Arrays by name as a compressed npz."""
    buffer = io.BytesIO()
    # As numpy's own savez_compressed does it, to which a name may be one of its arguments: `file`.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    write_atomically(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, Any]:
    """What such a file holds; nothing where there is none. Raises InputError for one that cannot be read."""
    try:
        return read_npz(path)
    except FileNotFoundError:
        return {}
    except Exception as error:  # numpy raises many kinds for a damaged archive
        why = printable(error, 200)
        raise InputError(f"{path} cannot be read ({why}): move it away to evaluate again") from error


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
        found: what was found.
        prefix: of the metrics' names: the split, or the evaluation's label and split.
        log: records and TensorBoard.
        step, epoch: of the parameters that were evaluated.
        label: of an evaluation after the run: its values per image, arrays and figures stand beside the run's own.
    """
    within = f"{label}/" if label else ""
    others = read_arrays(folder / "per_example.npz") if label else {}
    own = {f"{within}{name}": value.numpy() for name, value in results.per_image.items()}
    write_arrays(folder / "per_example.npz", others | own)
    if results.arrays:
        write_arrays(folder / (f"arrays-{label}.npz" if label else "arrays.npz"), results.arrays)
    log.log_scalars(step, epoch, {f"{prefix}/{name}": v for name, v in results.metrics.items() if v is not None})
    figures = folder / "figures" / label
    figures.mkdir(parents=True, exist_ok=True)
    for name, picture in results.pictures.items():
        log.log_image(f"images/{within}{name}", picture, step)
        write_atomically(figures / f"{name}.png", save_png(picture))


def prefixed_metrics(results: EvaluationResults, prefix: str) -> dict[str, float | None]:
    """The metrics as result.json names them."""
    return {f"{prefix}/{name}": value for name, value in results.metrics.items()}


def described_metrics(results: EvaluationResults, protocol: dict[str, Any], prefix: str) -> list[tuple[str, str, str]]:
    """(name, number, words) of what was found."""
    return metric_rows(prefixed_metrics(results, prefix), protocol, prefix)
