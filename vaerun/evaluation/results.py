"""The results of an evaluation as a value: filled by run/evaluate, written by run/evaluate/write.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor


@dataclass
class EvaluationResults:
    """The results of an evaluation.

    Attributes:
        metrics: numbers by name; `NAME_se` is the standard error of a mean over images (None for a single image), and
            a value is None if it is not finite.
        per_image: values [N] by name.
        ids: row in the source (int) or file name (str) of each evaluated image, [N].
        arrays: larger arrays by name, for a separate npz file.
        details: other results for result.json.
        pictures: [3, H, W] in [0, 1] by name.
        texts: tables to print.
        warnings: one line each.
        diverged: name of a density that is not finite for some images, or None.
    """

    metrics: dict[str, float | None] = field(default_factory=dict)
    per_image: dict[str, Tensor] = field(default_factory=dict)
    ids: np.ndarray | None = None
    arrays: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    non_finite_metric: str | None = None

    def add_mean(self, name: str, values: Tensor) -> None:
        """Add values [N] per image, their mean and its standard error."""
        self.per_image[name] = values
        infinite = int((~values.isfinite()).sum())
        if infinite:
            self.metrics[name] = self.metrics[f"{name}_se"] = None
            self.warnings.append(f"{name} is not finite for {infinite} of {len(values)} images: its mean is omitted")
            return
        self.metrics[name] = float(values.mean())
        self.metrics[f"{name}_se"] = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None
