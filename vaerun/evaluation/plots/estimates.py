"""The picture of estimates of log p(x) against the number of samples (likelihood/estimates.py)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vaerun.evaluation.plots.charts import Curve, line_chart

NAMES = {"prior": "z from the prior p(z)", "posterior": "z from q(z|x)", "amis": "z from AMIS's proposal"}


def summarise(values: Tensor) -> dict[str, list[float | None]]:
    """Median, lowest and highest over repeats of the mean over images: [N, R, n] -> lists of n; None: not finite."""
    mean = values.mean(0)
    rows = {"median": mean.quantile(0.5, 0), "low": mean.amin(0), "high": mean.amax(0)}
    return {name: [float(v) if math.isfinite(v) else None for v in row.tolist()] for name, row in rows.items()}


def estimates_chart(
    sizes: Sequence[int],
    curves: Mapping[str, Mapping[str, Any]],
    *,
    amis_cost: float,
    ais: tuple[int, float] | None,
    title: str,
) -> Tensor:
    """Estimates against K [3, H, W]: all of them, and the upper part enlarged.

    Arguments:
        sizes: the numbers of samples K, [n].
        curves: by method (`prior`, `posterior`, `amis`), as returned by `summarise`.
        amis_cost: evaluations of AMIS's adaptation; its curve is shown with and without them.
        ais: cost and value of annealed importance sampling; None: not run.
        title: of the picture.
    """

    def curve(method: str, colour: int, shift: float = 0.0) -> Curve:
        y, low, high = (
            [math.nan if v is None else v for v in curves[method][part]] for part in ("median", "low", "high")
        )
        return Curve([size + shift for size in sizes], y, low, high, colour, dashed=shift > 0)

    drawn = {NAMES[method]: curve(method, i) for i, method in enumerate(NAMES) if method in curves}
    drawn["AMIS, adaptation counted"] = curve("amis", list(NAMES).index("amis"), amis_cost)
    points = {} if ais is None else {"annealed importance sampling": (float(ais[0]), ais[1])}
    # All but the prior's curve, which is too far below to tell the others apart.
    upper = [v for method in ("posterior", "amis") if method in curves for v in curves[method]["low"] if v is not None]
    enlarged = None
    if upper:
        top = max([v for v in curves["amis"]["high"] if v is not None] + [y for _, y in points.values()] + upper)
        margin = 0.05 * max(top - min(upper), 1e-3)
        enlarged = min(upper) - margin, top + margin
    return line_chart(
        drawn,
        title=title,
        xlabel="samples K (dashed, star: all evaluations of p(x, z))",
        ylabel="estimate of log p(x), nats per image",
        points=points,
        enlarged=enlarged,
    )
