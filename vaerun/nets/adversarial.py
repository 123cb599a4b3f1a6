"""Generators and discriminators, fully connected and convolutional.

A generator maps a latent vector and a context to an image in (-1, 1), by a final tanh; a discriminator maps such an
image to features, to which the model adds its heads. The convolutional pair follows Radford et al. (2016), section 3:
strided and transposed convolutions without pooling, batch normalisation except at the generator's output and the
discriminator's input, ReLU in the generator, leaky ReLU of slope 0.2 in the discriminator, weights from N(0, 0.02^2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm as with_spectral_norm

from vaerun.errors import InputError
from vaerun.nets.init import append_context, check_bool, check_integer, check_widths, linear

KERNEL, STRIDE, PADDING = 4, 2, 1
SLOPE = 0.2  # negative slope of the discriminators' leaky ReLUs
MINIMUM_SIDE = 4  # pixels; an image is not halved below this side
WEIGHT_STD = 0.02  # standard deviation of initial weights in convolutional networks


def halved_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes from the image's down to the smallest, each half of the previous one (rounded down).

    Raises InputError for images smaller than 8x8.
    """
    sizes = [(height, width)]
    while min(sizes[-1]) // 2 >= MINIMUM_SIDE:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    if len(sizes) == 1:
        raise InputError(
            f"images of {height}x{width} are too small for network=dcgan, which needs at least "
            f"{2 * MINIMUM_SIDE}x{2 * MINIMUM_SIDE}: use network=gan_mlp, or larger images"
        )
    return sizes


def _dense(inputs: int, outputs: int, batch_norm: bool, activation: nn.Module) -> nn.Sequential:
    norm = nn.BatchNorm1d(outputs) if batch_norm else nn.Identity()
    return nn.Sequential(nn.Linear(inputs, outputs, bias=not batch_norm), norm, activation)


def _initialise(module: nn.Module) -> None:
    """Weights N(0, 0.02^2) (Radford et al. 2016, section 4), batch normalisation scales N(1, 0.02^2), biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, 0.0, WEIGHT_STD)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, WEIGHT_STD)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class MLPGenerator(nn.Module):
    """Latent vectors z [..., B, d], c [B, classes] or None -> images [..., B, C, H, W] in (-1, 1).

    Arguments:
        latent_dim: d.
        image_shape: (C, H, W).
        context: number of classes, 0 when unconditional.
        hidden: widths of the hidden ReLU layers.
    """

    def __init__(self, latent_dim: int, image_shape: Sequence[int], context: int = 0, *, hidden: Sequence[int]) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        widths = [latent_dim + context, *check_widths("model.generator.hidden", hidden)]
        self.layers = nn.ModuleList(linear(a, b, "relu") for a, b in pairwise(widths))
        self.output = linear(widths[-1], math.prod(image_shape))

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        h = append_context(z, c)
        for layer in self.layers:
            h = F.relu(layer(h))
        return torch.tanh(self.output(h)).unflatten(-1, self.image_shape)


class MLPDiscriminator(nn.Module):
    """Features of an image: x [B, C, H, W] in [-1, 1], c [B, classes] or None -> [B, features].

    Arguments:
        image_shape: (C, H, W).
        context: number of classes, 0 when unconditional.
        hidden: widths of the hidden layers.
        spectral_norm: divide each weight matrix by its largest singular value (Miyato et al. 2018).
    """

    batch_norm = False

    def __init__(
        self, image_shape: Sequence[int], context: int = 0, *, hidden: Sequence[int], spectral_norm: bool = False
    ) -> None:
        super().__init__()
        widths = [math.prod(image_shape) + context, *check_widths("model.discriminator.hidden", hidden)]
        self.layers = nn.ModuleList(linear(a, b, "leaky_relu") for a, b in pairwise(widths))
        self.spectral_norm, self.features = check_bool("model.discriminator.spectral_norm", spectral_norm), widths[-1]
        if spectral_norm:
            for layer in self.layers:
                with_spectral_norm(layer)

    def feature_maps(self, x: Tensor, c: Tensor | None = None) -> list[Tensor]:
        """The output of every layer, [B, width] each; without layers, the input."""
        outputs, h = [], append_context(x.flatten(1), c)
        for layer in self.layers:
            h = F.leaky_relu(layer(h), SLOPE)
            outputs.append(h)
        return outputs or [h]

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return self.feature_maps(x, c)[-1]


class ConvGenerator(nn.Module):
    """Latent vectors z [..., B, d], c [B, classes] or None -> images [..., B, C, H, W] in (-1, 1), by upsampling.

    Arguments:
        latent_dim: d.
        image_shape: (C, H, W), at least 8x8.
        context: number of classes, 0 when unconditional.
        width: channels before the last layer, doubled at each level away from the image.
        dense: widths of the dense layers before the first convolution (InfoGAN has one, DCGAN none).
        batch_norm: normalise all layers but the last.
    """

    def __init__(
        self,
        latent_dim: int,
        image_shape: Sequence[int],
        context: int = 0,
        *,
        width: int,
        dense: Sequence[int] = (),
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        sizes = halved_sizes(*image_shape[1:])[::-1]
        levels = len(sizes) - 1
        check_bool("model.generator.batch_norm", batch_norm)
        channels = [check_integer("model.generator.width", width, 1) * 2**i for i in reversed(range(levels))]
        self.start = (channels[0], *sizes[0])
        widths = [latent_dim + context, *check_widths("model.generator.dense", dense)]
        self.dense = nn.ModuleList(_dense(a, b, batch_norm, nn.ReLU()) for a, b in pairwise(widths))
        self.project = nn.Linear(widths[-1], math.prod(self.start), bias=not batch_norm)
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for i, ((h0, w0), (h1, w1)) in enumerate(pairwise(sizes)):
            last = i == levels - 1
            self.norms.append(nn.BatchNorm2d(channels[i]) if batch_norm else nn.Identity())
            self.convolutions.append(
                nn.ConvTranspose2d(
                    channels[i],
                    image_shape[0] if last else channels[i + 1],
                    KERNEL,
                    STRIDE,
                    PADDING,
                    output_padding=(h1 - 2 * h0, w1 - 2 * w0),  # pixels lost when halving rounded down
                    bias=last or not batch_norm,
                )
            )
        _initialise(self)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        h = append_context(z, c)
        leading = h.shape[:-1]
        h = h.reshape(-1, h.shape[-1])
        for layer in self.dense:
            h = layer(h)
        h = self.project(h).unflatten(-1, self.start)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = convolution(F.relu(norm(h)))
        return torch.tanh(h).reshape(*leading, *h.shape[1:])


class ConvDiscriminator(nn.Module):
    """Features of an image: x [B, C, H, W] in [-1, 1], c [B, classes] or None -> [B, features], by downsampling.

    The label is an additional input channel, a learned image for each class.

    Arguments:
        image_shape: (C, H, W), at least 8x8.
        context: number of classes, 0 when unconditional.
        width: channels of the first layer, doubled in each further one.
        dense: widths of the dense layers after the last convolution (InfoGAN has one, DCGAN none).
        batch_norm: normalise all layers but the first.
        spectral_norm: divide each weight matrix between image and logit by its largest singular value (Miyato et al.
            2018).
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        context: int = 0,
        *,
        width: int,
        dense: Sequence[int] = (),
        batch_norm: bool = True,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        sizes = halved_sizes(*image_shape[1:])
        levels = len(sizes) - 1
        check_bool("model.discriminator.batch_norm", batch_norm)
        check_bool("model.discriminator.spectral_norm", spectral_norm)
        channels = [check_integer("model.discriminator.width", width, 1) * 2**i for i in range(levels)]
        self.label_channel = nn.Linear(context, math.prod(image_shape[1:]), bias=False) if context else None
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for i, (a, b) in enumerate(pairwise([image_shape[0] + bool(context), *channels])):
            normalised = batch_norm and i > 0
            self.convolutions.append(nn.Conv2d(a, b, KERNEL, STRIDE, PADDING, bias=not normalised))
            self.norms.append(nn.BatchNorm2d(b) if normalised else nn.Identity())
        widths = [channels[-1] * math.prod(sizes[-1]), *check_widths("model.discriminator.dense", dense)]
        self.dense = nn.ModuleList(_dense(a, b, batch_norm, nn.LeakyReLU(SLOPE)) for a, b in pairwise(widths))
        _initialise(self)
        if self.label_channel is not None:
            nn.init.normal_(self.label_channel.weight)  # on the scale of the image's channels
        self.batch_norm = batch_norm and levels + len(dense) > 1
        if spectral_norm and self.batch_norm:
            raise InputError(
                "model.discriminator.spectral_norm has no effect on layers followed by batch normalisation: set "
                "model.discriminator.batch_norm=false"
            )
        self.spectral_norm, self.features = spectral_norm, widths[-1]
        if spectral_norm:
            for layer in (*self.convolutions, *(block[0] for block in self.dense)):  # type: ignore[index]
                with_spectral_norm(layer)

    def feature_maps(self, x: Tensor, c: Tensor | None = None) -> list[Tensor]:
        """The output of every layer, [B, channels, h, w] each; of dense layers [B, width]."""
        if self.label_channel is not None:
            assert c is not None
            channel = self.label_channel(c.to(x.dtype)).reshape(len(x), 1, *x.shape[2:])
            x = torch.cat([x, channel], 1)
        outputs = []
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            x = F.leaky_relu(norm(convolution(x)), SLOPE)
            outputs.append(x)
        if len(self.dense):
            x = x.flatten(1)
        for layer in self.dense:
            x = layer(x)
            outputs.append(x)
        return outputs

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return self.feature_maps(x, c)[-1].flatten(1)
