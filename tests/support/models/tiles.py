"""A generator that can be decoded: a picture tells which noise stands where.

An exactly invertible map: pixel = 1 / 2 + noise / 64 in the first channel, in the second the label or the code's value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vaerun.evaluation.plots.pictures import SEED
from vaerun.randomness import ImageNoise

H, W = 3, 5
N = H * W
SCALE = 32 // W  # `grid` enlarges small images
LIKE = torch.zeros((), dtype=torch.float64)  # fixtures set the default only later
SETS = {"smiling": [0, 4, 17], "neutral": [1, 2, 3], "woman": [5, 8, 40], "one": [7]}


def encode(values: Tensor) -> Tensor:
    return 0.5 + values / 64


def generate(noise: Tensor, c: Tensor | None) -> Tensor:
    """Images [N, 3, 3, 5]: the noise, the label's number (0 for none) in every pixel, and whether there is a label."""
    assert not torch.is_grad_enabled()
    images = torch.zeros(len(noise), 3, H, W)
    images[:, 0] = noise.view(-1, H, W)
    if c is not None:
        assert c.shape[0] == len(noise)
        assert torch.equal(c.sum(1), torch.ones(len(c)))
        images[:, 1] = c.argmax(1).view(-1, 1, 1).to(images)
        images[:, 2] = 1
    return encode(images)


def generate_with_code(noise: Tensor, index: int, value: Tensor) -> Tensor:
    images = generate(noise, None)
    images[:, 1] = encode(value.to(noise)).view(-1, 1, 1)
    images[:, 2] = encode(torch.tensor(float(index)))
    return images


def tiles(picture: Tensor) -> Tensor:
    """The decoded tiles [rows, columns, 3, N] of a grid; fails unless the grid is whole tiles with a frame of one."""
    h, w = H * SCALE + 1, W * SCALE + 1
    assert picture.shape[0] == 3
    rows, columns = (picture.shape[1] - 1) / h, (picture.shape[2] - 1) / w
    assert rows == int(rows)
    assert columns == int(columns)
    cells = picture[:, 1:, 1:].reshape(3, int(rows), h, int(columns), w)[:, :, : h - 1, :, : w - 1]
    pixels = cells.reshape(3, int(rows), H, SCALE, int(columns), W, SCALE)
    assert torch.equal(pixels, pixels[:, :, :, :1, :, :, :1].expand_as(pixels))
    return (64 * (pixels[:, :, :, 0, :, :, 0] - 0.5)).permute(1, 3, 0, 2, 4).flatten(-2)


def noise_of(number: int, n: int = N) -> Tensor:
    return ImageNoise(SEED, [number], n, LIKE.float())("samples", 1)[0, 0].to(LIKE)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
