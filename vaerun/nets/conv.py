"""Convolutional networks for images of any size: strided convolutions down, transposed convolutions up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from vaerun.errors import InputError
from vaerun.nets.init import append_context, check_widths, get_activation, initialise, linear
from vaerun.nets.mlp import Stack

KERNEL, STRIDE, PADDING = 3, 2, 1


def level_sizes(height: int, width: int, levels: int) -> list[tuple[int, int]]:
    """Image sizes after 0, 1, ... stride-2 convolutions, each of which halves the size, rounding up.

    Raises InputError if the image is too small for this number of levels.
    """
    out = [(height, width)]
    for _ in range(levels):
        h, w = out[-1]
        if min(h, w) < 2:
            raise InputError(f"images of {height}x{width} are too small for {levels} strided convolutions: use fewer")
        out.append(((h + 1) // 2, (w + 1) // 2))
    return out


class ConvEncoder(nn.Module):
    """Features of an image: x [B, C, H, W], c [B, classes] or None -> [B, features].

    Arguments:
        image_shape: (C, H, W).
        context: number of classes, 0 when unconditional; the label enters at the first dense layer.
        channels: output channels of the strided convolutions, each of which halves the image.
        hidden: widths of the dense layers that follow.
        activation: relu, leaky_relu, softplus, silu or tanh.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        context: int = 0,
        *,
        channels: Sequence[int],
        hidden: Sequence[int],
        activation: str = "relu",
    ) -> None:
        super().__init__()
        widths = [image_shape[0], *check_widths("model.encoder.channels", channels)]
        h, w = level_sizes(image_shape[1], image_shape[2], len(widths) - 1)[-1]
        self.convolutions = nn.ModuleList()
        for a, b in pairwise(widths):
            layer = nn.Conv2d(a, b, KERNEL, STRIDE, PADDING)
            initialise(layer, activation)
            self.convolutions.append(layer)
        self.activation = get_activation(activation)
        self.stack = Stack(widths[-1] * h * w + context, check_widths("model.encoder.hidden", hidden), activation)
        self.features = self.stack.out_features

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        for layer in self.convolutions:
            x = self.activation(layer(x))
        return self.stack(append_context(x.flatten(1), c))


class ConvDecoder(nn.Module):
    """The likelihood's natural parameter: z [..., B, d], c [B, classes] or None -> [..., B, C, H, W].

    The mirror image of ConvEncoder. It does not end in an affine layer, so Joint uses its general path.

    Arguments:
        latent_dim: d.
        image_shape: (C, H, W).
        context: number of classes, 0 when unconditional.
        channels: input channels of the transposed convolutions, each of which doubles the image.
        hidden: widths of the dense layers before them.
        activation: as in ConvEncoder.
    """

    affine: nn.Linear | None = None

    def __init__(
        self,
        latent_dim: int,
        image_shape: Sequence[int],
        context: int = 0,
        *,
        channels: Sequence[int],
        hidden: Sequence[int],
        activation: str = "relu",
    ) -> None:
        super().__init__()
        widths = [*check_widths("model.decoder.channels", channels), image_shape[0]]
        levels = level_sizes(image_shape[1], image_shape[2], len(widths) - 1)[::-1]
        self.start = (widths[0], *levels[0])
        self.stack = Stack(latent_dim + context, check_widths("model.decoder.hidden", hidden), activation)
        self.expand = linear(self.stack.out_features, math.prod(self.start), activation)
        self.activation = get_activation(activation)
        self.convolutions = nn.ModuleList()
        last = len(widths) - 2
        for i, (a, b, (h0, w0), (h1, w1)) in enumerate(zip(widths, widths[1:], levels, levels[1:], strict=False)):
            # A transposed convolution outputs 2 h0 - 1 pixels; output padding compensates the encoder's rounding.
            extra = (h1 - (2 * h0 - 1), w1 - (2 * w0 - 1))
            layer = nn.ConvTranspose2d(a, b, KERNEL, STRIDE, PADDING, output_padding=extra)
            initialise(layer, activation if i < last else "linear")
            self.convolutions.append(layer)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        h = self.activation(self.expand(self.stack(append_context(z, c))))
        leading = h.shape[:-1]
        h = h.reshape(-1, *self.start)
        for i, layer in enumerate(self.convolutions):
            h = layer(h)
            if i < len(self.convolutions) - 1:
                h = self.activation(h)
        return h.reshape(*leading, *h.shape[1:])
