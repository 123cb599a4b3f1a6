"""Charts: what is drawn, read back from the pixels, and what must not change it."""

from __future__ import annotations

import math
import subprocess
import sys

import matplotlib
import pytest
import torch
from matplotlib.colors import to_rgb
from torch import Tensor

from vaerun.errors import InputError
from vaerun.evaluation.latent.statistics import LatentStatistics, kl_chart, latent_pictures, latent_scatter
from vaerun.evaluation.plots.charts import COLOURS, Ellipse, bar_chart, scatter
from vaerun.evaluation.plots.pictures import save_png

GREY = "dimgrey"


def where(picture: Tensor, colour: str) -> Tensor:
    """Which pixels [H, W] have this colour."""
    return (picture - torch.tensor(to_rgb(colour), dtype=picture.dtype)[:, None, None]).abs().amax(0) < 0.02


def area(picture: Tensor, number: int, columns: slice = slice(None)) -> int:
    return int(where(picture, COLOURS[number])[:, columns].sum())


def heights(picture: Tensor, number: int) -> list[int]:
    """Of the bars of a series, from left to right, in pixels."""
    columns = where(picture, COLOURS[number]).sum(0).tolist()
    bars = [[0]]
    for value, before in zip(columns, [0, *columns], strict=False):
        bars[-1].append(value)
        if before and not value:
            bars.append([0])
    return [max(bar) for bar in bars if max(bar) > 0]


def chart(groups, **options) -> Tensor:
    return bar_chart(groups, ylabel="nats", title="title", **options)


def check_picture(picture: Tensor) -> None:
    assert picture.shape[0] == 3
    assert picture.dtype == torch.float32
    assert 0 <= picture.min() < picture.max() <= 1
    assert save_png(picture).startswith(b"\x89PNG")


def test_bars_are_as_high_as_their_values():
    picture = chart({"a": {"one": 1.0}, "b": {"one": 2.0}, "c": {"one": 4.0}})
    check_picture(picture)
    first, second, third = heights(picture, 0)
    assert second / first == pytest.approx(2, abs=0.1)
    assert third / first == pytest.approx(4, abs=0.2)
    first, second, third = heights(chart({"a": {"x": 1e-3}, "b": {"x": 1e-1}, "c": {"x": 1e3}}, log=True), 0)
    assert (third - second) / (second - first) == pytest.approx(2, abs=0.05)


def test_series_stand_side_by_side_or_on_each_other():
    groups = {"run": {"one": 3.0, "two": 1.0, "down": -2.0}}
    for stacked in (False, True):
        tall, low, down = (where(chart(groups, stacked=stacked), COLOURS[i]).nonzero() for i in range(3))
        tall, low, down = (p[p[:, 1] < 450] for p in (tall, low, down))  # left of the legend
        assert (tall[:, 1].max() < low[:, 1].min()) != stacked
        assert (low[:, 0].max() < tall[:, 0].min() + 2) == stacked
        assert down[:, 0].min() >= tall[:, 0].max() - 1  # below zero
        spans = [float(p[:, 0].max() - p[:, 0].min()) for p in (tall, low, down)]
        assert spans[0] / spans[1] == pytest.approx(3, abs=0.2)
        assert spans[2] / spans[1] == pytest.approx(2, abs=0.2)


def test_what_has_no_bar_is_written_out():
    full = chart({"a": {"x": 1.0, "y": 2.0}, "b": {"x": 1.0, "y": 2.0}})
    lacking = chart({"a": {"x": 1.0, "y": 2.0}, "b": {"x": 1.0}})
    assert full.shape == lacking.shape
    assert len(heights(lacking, 1)) == len(heights(full, 1)) - 1
    for value, log in ((math.nan, False), (math.inf, True), (0.0, True)):
        picture = chart({"a": {"x": 1.0, "y": 2.0}, "b": {"x": 1.0, "y": value}}, log=log)
        silent = chart({"a": {"x": 1.0, "y": 2.0}, "b": {"x": 1.0}}, log=log)
        assert len(heights(picture, 1)) == len(heights(silent, 1))
        assert not torch.equal(picture, silent)
    nothing = chart({"a": {"x": math.nan}})
    check_picture(nothing)


def test_error_bars_are_drawn_where_given():
    groups = {"a": {"x": 1.0}, "b": {"x": 1.0}}
    plain, one = chart(groups), chart(groups, errors={"b": {"x": 0.3}})
    dark = [where(p, "black").any(0).nonzero().flatten().max() for p in (plain, one)]
    assert not torch.equal(plain, one)
    check_picture(chart(groups, errors={"a": {"x": 0.1}, "b": {"x": 2.0}}, log=True))
    assert dark[0] == dark[1]  # the axis reaches further right than the error bar


def test_a_name_is_shown_letter_by_letter():
    # As a formula the first would lack its dollars, and the second could not be read at all.
    letters = chart({"ab": {"_one": 1.0, "$x$": 1.0}})
    check_picture(chart({"$a$ $": {"$\\frac{1$": 1.0, "_one": 1.0}, "\\$b$$": {"_one": 1.0}}))
    widths = []
    for name in ("aaa", "$aaa$"):
        below = chart({name: {"x": 1.0}})[0, -20:] < 0.5  # where the name stands, below the axis
        columns = below.any(0).nonzero().flatten()
        widths.append(int(columns.max() - columns.min()))
    assert widths[1] > widths[0] * 1.5
    assert letters.shape == chart({"ab": {"one": 1.0, "x": 1.0}}).shape
    # Letters that the font lacks, and line breaks: no warning.
    check_picture(chart({"猫\n\t犬": {"x": 1.0}}))
    points = torch.randn(9, 2)
    check_picture(scatter(points, title="$x", xlabel="$", ylabel="$_$", labels=torch.arange(9) % 3, names="_$猫"))


def test_long_and_many_names_leave_room_for_the_bars():
    for groups in ({"x" * 90 + str(i): {"v": 1.0} for i in range(6)}, {str(i): {"v": 1.0} for i in range(700)}):
        picture = chart(groups)
        height, width = picture.shape[1:]
        assert max(height, width) <= 1300
        assert area(picture, 0) > 0.2 * height * width


def test_the_users_own_settings_change_nothing():
    groups = {"a": {"x": 1.0, "y": 2.0}}
    expected = chart(groups)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "text.usetex": True}):
        assert torch.equal(chart(groups), expected)
        assert matplotlib.rcParams["font.size"] == 30


def test_pyplot_is_never_imported():
    code = (
        "import sys; from vaerun.evaluation.plots.charts import bar_chart; assert 'matplotlib' not in sys.modules; "
        "bar_chart({'a': {'x': 1.0}}, ylabel='', title=''); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


def test_what_cannot_be_drawn_is_refused():
    for groups, options, message in (
        ({}, {}, "nothing to draw"),
        ({"a": {}}, {}, "nothing to draw"),
        ({"a": {"x": -1.0}}, {"log": True}, "logarithmic"),
        ({"a": {"x": 1.0}}, {"log": True, "stacked": True}, "logarithmic"),
    ):
        with pytest.raises(InputError, match=message):
            chart(groups, **options)
    with pytest.raises(InputError, match=r"\[N, 2\]"):
        scatter(torch.zeros(3, 3), title="", xlabel="", ylabel="")


def test_points_are_where_they_belong():
    # Four clusters at the corners of a rectangle twice as wide as high: the picture's axes have one scale.
    labels = torch.arange(400) % 4
    points = torch.tensor([[-4.0, 2.0], [4.0, 2.0], [-4.0, -2.0], [4.0, -2.0]])[labels] + 0.01 * torch.randn(400, 2)
    options = {"title": "t", "xlabel": "x", "ylabel": "y"}
    picture = scatter(points, labels=labels, **options)
    check_picture(picture)
    tab10 = matplotlib.colormaps["tab10"]
    centres = []
    for number in range(4):
        result = where(picture, tab10(number)[:3]).nonzero().double()
        result = result[result[:, 1] < 590]  # left of the legend
        centres.append(result.median(0).values)
    wide, high = centres[1] - centres[0], centres[2] - centres[0]
    assert float(wide[1] / high[0]) == pytest.approx(2, abs=0.1)
    assert abs(float(wide[0])) < 5
    assert float(wide[1]) > 200
    lost = torch.cat([points, torch.tensor([[math.nan, 0.0]])])
    assert not torch.equal(scatter(lost, **options), scatter(points, **options))  # the title says so


@pytest.mark.parametrize("kinds", [1, 10, 15, 100])
def test_as_many_labels_as_there_are(kinds):
    options = {"title": "t", "xlabel": "x", "ylabel": "y", "ellipses": [Ellipse((0.0, 0.0), (1.0, 2.0), 0)]}
    check_picture(scatter(torch.randn(200, 2), labels=torch.arange(200) % kinds, **options))


def statistics(d: int, n: int = 300, conditional: bool = False) -> LatentStatistics:
    means = torch.randn(n, d) * torch.linspace(2, 0, d)
    labels = torch.arange(n) % 3
    prior = 5.0 * labels[:, None].expand(n, d) if conditional else torch.zeros(n, d)
    ones = torch.ones(n, d)
    return LatentStatistics(means, 0.5 * ones, means, prior, ones, labels, 0)


def test_pictures_of_the_latent_space():
    assert set(latent_pictures(statistics(5))) == {"kl_by_dimension"}
    result = latent_pictures(statistics(2), ["a", "b", "c"])
    assert set(result) == {"kl_by_dimension", "posterior_means", "aggregate_posterior"}
    for picture in result.values():
        check_picture(picture)
    bars = heights(kl_chart(statistics(5)), 0)
    assert len(bars) >= 4  # the fifth's mean does not move; the legend adds to them
    assert bars[:4] == sorted(bars[:4], reverse=True)
    with pytest.raises(InputError, match="latent_dim=2"):
        latent_scatter(statistics(3), torch.zeros(300, 2), "t")


def test_the_priors_circles_are_those_of_the_prior():
    plain, conditional = statistics(2), statistics(2, conditional=True)
    ring = where(latent_scatter(plain, plain.means, "t"), GREY)[40:500, 60:590]  # without the letters' blurred edges
    assert ring.sum() > 200
    result = ring.nonzero().double()
    span = result.max(0).values - result.min(0).values
    assert float(span[0] / span[1]) == pytest.approx(1, abs=0.02)
    assert (
        where(latent_scatter(conditional, conditional.means, "t"), GREY)[40:500, 60:590].sum() < 20
    )  # in the classes' colours instead
