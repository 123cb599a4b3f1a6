"""Spherical interpolation: closed forms, norms, angular speed, end points, and where there is no great circle."""

from __future__ import annotations

import math

import pytest
import torch
from support.models.tiles import LIKE, close

from vaerun.evaluation.latent import traversals


def test_great_circle_in_closed_form() -> None:
    """From 2 (1, 0, 0) to 4 (cos 120°, sin 120°, 0): angle 120° t, norm 2 + 2 t."""
    angle = 2 * math.pi / 3
    a, b = torch.tensor([2.0, 0, 0]), 4 * torch.tensor([math.cos(angle), math.sin(angle), 0])
    t = torch.linspace(0, 1, 13)
    wanted = (2 + 2 * t).unsqueeze(1) * torch.stack([torch.cos(angle * t), torch.sin(angle * t), 0 * t], 1)
    close(traversals.slerp(a, b, t), wanted)


def test_is_shoemakes_formula_where_the_norms_agree() -> None:
    a, b = (3 * v / v.norm() for v in torch.randn(2, 20))
    t = torch.linspace(0, 1, 9).unsqueeze(1)
    angle = torch.acos(a @ b / 9)
    wanted = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    close(traversals.slerp(a, b, t.squeeze(1)), wanted)


def test_constant_angular_speed_and_linear_norm() -> None:
    a, b = torch.randn(2, 50)
    path = traversals.slerp(a, 3 * b, torch.linspace(0, 1, 11))
    norms = path.norm(dim=1)
    close(norms, torch.linspace(float(a.norm()), float(3 * b.norm()), 11))
    cosines = torch.linalg.vecdot(path[1:], path[:-1]) / (norms[1:] * norms[:-1])
    close(torch.acos(cosines), torch.acos(a @ b / (a.norm() * b.norm())).div(10).expand(10))
    assert int(torch.linalg.matrix_rank(torch.cat([path, a[None], b[None]]), tol=1e-9)) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_to_the_last_bit(dtype: torch.dtype) -> None:
    for steps in (2, 3, 8, 31):
        a, b = torch.randn(2, 64, dtype=dtype)
        path = traversals.slerp(a, b, torch.linspace(0, 1, steps, dtype=dtype))
        assert path.dtype == dtype
        assert torch.equal(path[0], a)
        assert torch.equal(path[-1], b)


@pytest.mark.parametrize(
    ("a", "b"),
    [([1, 2, 2], [2, 4, 4]), ([1, 2, 2], [1, 2, 2]), ([1, 2, 2], [-2, -4, -4]), ([0, 0, 0], [1, 2, 2]), ([1], [-3])],
    ids=["parallel", "equal", "opposite", "from zero", "one dimension"],
)
def test_a_straight_line_where_there_is_no_plane(a: list[float], b: list[float]) -> None:
    start, end = torch.tensor(a).to(LIKE), torch.tensor(b).to(LIKE)
    for first, last in (start, end), (end, start):
        wanted = torch.stack([first, (3 * first + last) / 4, (first + last) / 2, last])
        close(traversals.slerp(first, last, torch.tensor([0, 0.25, 0.5, 1])), wanted)


@pytest.mark.parametrize("angle", [1e-12, 1e-9, 1e-7, 1e-5, 1e-3, 1.0, 3.0, math.pi - 1e-3])
def test_small_and_large_angles(angle: float) -> None:
    """The switch to the straight line is not seen; near a half turn the plane itself is known less well."""
    a, b = torch.tensor([5.0, 0]), torch.tensor([5 * math.cos(angle), 5 * math.sin(angle)])
    t = torch.linspace(0, 1, 7)
    wanted = 5 * torch.stack([torch.cos(angle * t), torch.sin(angle * t)], 1)
    torch.testing.assert_close(traversals.slerp(a, b, t), wanted, rtol=0, atol=1e-12)
