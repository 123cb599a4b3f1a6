"""What an evaluation has found, as a value: filled in evaluate.py, written by keep.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class EvaluationResults:
    """What was found.

    Attributes:
        metrics: numbers by name; `NAME_se` is the standard error of a mean over images (None: a single image).
        per_image: [N] by name.
        arrays: larger arrays for an npz of their own.
        details: what is no single number, for the record.
        pictures: [3, H, W] in [0, 1] by name.
        texts: tables to print.
        warnings: a line each.
        diverged: a density that is not finite for some images, or None.
    """

    metrics: dict[str, float | None] = field(default_factory=dict)
    per_image: dict[str, Tensor] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    diverged: str | None = None

    def add_mean(self, name: str, values: Tensor) -> None:
        """Keep values [N] per image, their mean and its standard error."""
        self.per_image[name] = values
        lost = int((~values.isfinite()).sum())
        if lost:
            self.metrics[name] = self.metrics[f"{name}_se"] = None
            self.warnings.append(f"{name} is not finite for {lost} of {len(values)} images: there is no mean")
            return
        self.metrics[name] = float(values.mean())
        self.metrics[f"{name}_se"] = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None
