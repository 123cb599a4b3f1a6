"""A discriminator's features, pooled by hand."""

from __future__ import annotations

from math import ceil, floor

import pytest
import torch
from torch import Tensor

from vaerun.errors import InputError
from vaerun.evaluation.samples.feature_pooling import pooled_features


def _by_hand(features: Tensor) -> Tensor:
    n, channels, h, w = features.shape
    rows, columns = min(h, 4), min(w, 4)
    out = torch.empty(n, channels, rows, columns)
    for i in range(rows):
        for j in range(columns):
            top, bottom = floor(i * h / rows), ceil((i + 1) * h / rows)
            left, right = floor(j * w / columns), ceil((j + 1) * w / columns)
            out[:, :, i, j] = features[:, :, top:bottom, left:right].amax((2, 3))
    return out.reshape(n, -1)


@pytest.mark.parametrize(("h", "w"), [(16, 16), (4, 4), (7, 7), (5, 9), (3, 3), (1, 1), (2, 8), (14, 4)])
def test_one_layer(h: int, w: int) -> None:
    features = torch.randn(3, 2, h, w)
    assert torch.equal(pooled_features([features]), _by_hand(features))


def test_small_maps_stay() -> None:
    features = torch.randn(2, 5, 3, 4)
    assert torch.equal(pooled_features([features]), features.reshape(2, -1))


def test_largest_of_four_pixels() -> None:
    """8 x 8 pixels, numbered: each cell's largest is its lower right one."""
    features = torch.arange(64.0).view(1, 1, 8, 8)
    wanted = [8 * (2 * i + 1) + 2 * j + 1 for i in range(4) for j in range(4)]
    assert pooled_features([features, -features])[0].tolist() == wanted + [-(w - 9) for w in wanted]


def test_layers_in_order() -> None:
    first, dense, last = torch.randn(4, 3, 8, 8), torch.randn(4, 7), torch.randn(4, 2, 5, 5)
    result = pooled_features([first, dense, last])
    assert torch.equal(result, torch.cat([_by_hand(first), dense, _by_hand(last)], 1))
    assert result.shape == (4, 3 * 16 + 7 + 2 * 16)


def test_as_many_as_in_the_paper() -> None:
    """28,672 features: 16 cells of 256 + 512 + 1024 channels."""
    maps = [torch.zeros(1, 256, 16, 16), torch.zeros(1, 512, 8, 8), torch.zeros(1, 1024, 4, 4)]
    assert pooled_features(maps).shape == (1, 28672)


def test_images_do_not_mix() -> None:
    maps = [torch.randn(5, 3, 9, 9), torch.randn(5, 2)]
    alone = [pooled_features([m[i : i + 1] for m in maps]) for i in range(5)]
    assert torch.equal(pooled_features(maps), torch.cat(alone))


@pytest.mark.parametrize("shape", [(2, 3, 4), (2,), (3, 5), (3, 1, 2, 2), (2, 1, 1, 1, 1)])
def test_maps_that_are_not(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"layer 1 must have shape \[2, C, h, w\] or \[2, f\], got"):
        pooled_features([torch.zeros(2, 4), torch.zeros(shape)])


def test_no_maps() -> None:
    with pytest.raises(InputError, match="at least one layer"):
        pooled_features([])
