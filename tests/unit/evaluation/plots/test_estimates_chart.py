"""The picture of estimates against K."""

from __future__ import annotations

import math

import pytest
import torch
from matplotlib.colors import to_rgb
from torch import Tensor

from vaerun.evaluation.plots.charts import COLOURS, Curve, line_chart
from vaerun.evaluation.plots.estimates import estimates_chart, summarise

SIZES = [1, 2, 5, 10]


def colour_rows(picture: Tensor, colour: str, columns: slice = slice(None)) -> Tensor:
    """Rows with pixels of this colour, from the top."""
    hits = (picture - torch.tensor(to_rgb(colour)).to(picture)[:, None, None]).abs().amax(0) < 0.02
    return hits[:, columns].any(1).nonzero()[:, 0]


def test_summary_is_over_repeats_of_means_over_images() -> None:
    values = torch.arange(2 * 3 * 2).double().view(2, 3, 2)
    assert summarise(values) == {"median": [5, 6], "low": [3, 4], "high": [7, 8]}
    values[0, 1, 0] = -math.inf
    assert summarise(values)["low"] == [None, 4]


@pytest.mark.parametrize("methods", [("prior", "posterior", "amis"), ("prior", "amis")])
def test_every_method_is_drawn_and_the_upper_ones_are_enlarged(methods: tuple[str, ...]) -> None:
    offset = {"prior": -1000.0, "posterior": -20.0, "amis": -1.0}
    noise = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    curves = {name: summarise(offset[name] + noise) for name in methods}
    picture = estimates_chart(SIZES, curves, amis_cost=50.0, ais=(400, -2.0), title="title")
    assert picture.shape[0] == 3
    height, width = picture.shape[1:]
    left, right = slice(0, int(0.4 * width)), slice(int(0.42 * width), int(0.78 * width))
    prior, amis = COLOURS[0], COLOURS[2]
    assert (
        colour_rows(picture, prior, left).float().mean() > colour_rows(picture, amis, left).float().mean() + height / 3
    )
    assert not len(colour_rows(picture, prior, right))  # far below
    assert len(colour_rows(picture, amis, right))
    if "posterior" in methods:
        q = COLOURS[1]
        assert colour_rows(picture, q, right).float().mean() > colour_rows(picture, amis, right).float().mean() + 50


def test_values_that_are_not_finite_are_gaps() -> None:
    y = [1.0, math.nan, -math.inf, 2.0]
    picture = line_chart({"a": Curve(SIZES, y, y, y, 0)}, title="t", xlabel="x", ylabel="y")
    assert picture.isfinite().all()
    curves = {name: summarise(torch.full((1, 2, 4), math.nan)) for name in ("prior", "amis")}
    assert estimates_chart(SIZES, curves, amis_cost=1.0, ais=None, title="t").isfinite().all()
