"""One row for each run directory below a folder, read from its result.json and .hydra/config.yaml alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vaerun.errors import InputError
from vaerun.report.filters import filter_runs
from vaerun.report.runs import NETWORKS, network_of, read_runs
from vaerun.report.text import clean, escape_csv, escape_markdown, is_number
from vaerun.storage.json_files import read_json
from vaerun.storage.yaml_files import read_config
from vaerun.text import HUGE, format_fixed

COLUMNS = (
    "data", "pixels", "given", "model", "d", "T", "likelihood", "estimator", "seed", "status", "epoch",
    "val/elbo", "test/elbo", "test/log_likelihood", "± se", "K", "images",
    "network", "test/diversity", "test/classifier_frechet_distance", "generated", "test/precision", "test/recall",
    "test/categorical_1_accuracy", "test/observation_variance", "test/ais",
    "test/amis", "± se of amis", "images of amis", "test/gap_posterior", "folder",
)  # fmt: skip

OPTIONAL = COLUMNS[COLUMNS.index("network") + 1 : -1]  # columns shown only if a run has a value
IF_DIFFERENT = ("network",)  # columns shown only if runs differ
TWO_DECIMALS = OPTIONAL[OPTIONAL.index("test/amis") :]  # as all columns that are not optional

SORT = ("data", "pixels", "given", "model", "T", "estimator", "seed", "folder")


def rows(folder: Path, where: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The runs below a folder, one row per run, sorted by SORT.

    Arguments:
        folder: searched recursively.
        where: conditions KEY=VALUE on the runs to list.

    Raises InputError if there are none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: name one with run directories, e.g. outputs")
    paths = sorted(folder.rglob("result.json"))
    if not paths:
        raise InputError(f"no run below {folder}: name a folder with run directories, e.g. outputs")
    if where:
        folders = {path.parent for path in paths}
        runs = [run for run in read_runs(folder)[0] if run.folder in folders]
        selected = {run.folder for run in filter_runs(runs, where)}
        paths = [path for path in paths if path.parent in selected]
    return sorted((_row(path, folder) for path in paths), key=lambda row: tuple(_sort_key(row[c]) for c in SORT))


def _sort_key(value: Any) -> tuple[str, float, str]:
    return type(value).__name__, value if is_number(value) else 0.0, str(value)


def _row(path: Path, root: Path) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row["folder"] = str(path.parent.relative_to(root))
    try:
        result = read_json(path, root=path.parent)
        for key in ("data", "model", "estimator", "seed", "status"):
            row[key] = result[key]
        metrics, protocol = result["metrics"], result["protocol"]
        row["epoch"] = protocol["selected_epoch"]
        for key in COLUMNS:
            if "/" in key:
                row[key] = metrics.get(key)
        row["± se"], row["± se of amis"] = (metrics.get(f"test/{name}_se") for name in ("log_likelihood", "amis"))
        if row["test/amis"] is not None:
            row["images of amis"] = protocol["amis"]["images"]
        if row["test/log_likelihood"] is not None:
            row["K"], row["images"] = protocol["importance_samples"], protocol["evaluated_images"]
        row["pixels"], row["likelihood"] = pixel_space(protocol), protocol["likelihood"]
        row["given"] = "label" if protocol["conditional"] else None  # log p(x | label), not log p(x)
        config = read_config(path.parent / ".hydra" / "config.yaml", path.parent)
        row["network"] = network_of((config["model"].get(part) or {}).get("_target_") for part in NETWORKS)
        if row["test/classifier_frechet_distance"] is not None:
            row["generated"] = protocol["generated"]["samples"]
        row["T"], row["d"] = (config["model"]["inference"] or {}).get("steps"), config["model"]["latent_dim"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        row["status"] = f"{row['status'] or ''} (unreadable)".strip()
    return {column: _shorten(column, value) for column, value in row.items()}


def pixel_space(protocol: dict[str, Any]) -> str:
    """The space that a density is over: densities over different spaces are not comparable."""
    if protocol["logit"]:
        return "logit"
    if protocol["dequantize"]:
        return "dequantised"
    return "as stored" if protocol["binarize"] == "none" else f"binarised ({protocol['binarize']})"


def _format(column: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return escape_markdown(clean(value))
    short = column in OPTIONAL and column not in TWO_DECIMALS
    return format(value, ".4g") if short else format_fixed(value, 2)


def _shorten(column: str, value: Any) -> Any:
    """A metric stored as a huge integer, as a float."""
    huge = isinstance(value, int) and ("/" in column or column.startswith("± se")) and abs(value) >= HUGE**2
    return float(value) if huge and is_number(value) else value


def _is_shown(column: str, values: set[str]) -> bool:
    minimum = 1 if column in OPTIONAL else 2 if column in IF_DIFFERENT else 0
    return len(values) >= minimum


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table; log-likelihoods and bounds in nats per image."""
    columns = [c for c in COLUMNS if _is_shown(c, {str(r[c]) for r in rows if r[c] is not None})]
    lines = [columns, *([_format(c, r[c]) for c in columns] for r in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    text = ["| " + " | ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(text)


def to_csv(rows: list[dict[str, Any]]) -> str:
    """The rows as CSV with all digits; text that a spreadsheet would take for a formula starts with an apostrophe."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    unquoted = (int, float, type(None))
    for row in rows:
        writer.writerow({k: v if isinstance(v, unquoted) else escape_csv(clean(v, 1000)) for k, v in row.items()})
    return buffer.getvalue().rstrip("\n")
