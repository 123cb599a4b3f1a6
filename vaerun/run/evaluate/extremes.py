"""Names the images that a model explains worst and best."""

from __future__ import annotations

import torch
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.evaluation.results import EvaluationResults
from vaerun.run.evaluate.write import id_column
from vaerun.text import format_fixed, printable

NAMED = 3  # images at either end
MAX_NAME = 60  # characters of a file name, the end of which tells more
RANKING = {"amis": "nats", "log_likelihood": "nats", "reconstruction_error": "squared error"}
"""Metrics by which images are ranked, and their units: the first that was evaluated."""


def extremes_line(results: EvaluationResults, split: Split, class_names: tuple[str, ...]) -> str | None:
    """One line with the hardest and easiest images by row or file name, with class and value; None for few images.

    Arguments:
        results: of an evaluation of the first images of the split.
        split: evaluated split.
        class_names: name of each class, if there are labels.
    """
    metric = next((name for name in RANKING if name in results.per_image), None)
    if metric is None:
        return None
    values = results.per_image[metric]
    rows = values.isfinite().nonzero()[:, 0]
    count = min(NAMED, len(rows) // 2)
    if not count:
        return None
    order = rows[torch.argsort(values[rows], stable=True, descending=metric == "reconstruction_error")]

    def named(chosen: Tensor) -> str:
        return ", ".join(_name(row, split, class_names, float(values[row])) for row in chosen.tolist())

    return (
        f"hardest of {len(values)} {split.name} images by {split.name}/{metric} ({RANKING[metric]}): "
        f"{named(order[:count])}; easiest: {named(order[-count:].flip(0))}"
    )


def _name(row: int, split: Split, class_names: tuple[str, ...], value: float) -> str:
    name = printable(split.ids[row])
    name = name if len(name) <= MAX_NAME else f"…{name[1 - MAX_NAME :]}"
    if id_column(split.ids) == "row":
        name = f"row {name}"
    if split.labels is not None:
        name += f" (class {printable(class_names[int(split.labels[row])], MAX_NAME)})"
    return f"{name} {format_fixed(value, 2)}"
