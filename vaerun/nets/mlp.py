"""Fully connected networks of any depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from vaerun.nets.init import activation as activation_named
from vaerun.nets.init import check_widths, join, linear


class Stack(nn.Module):
    """Linear layers, each followed by the activation: [..., n] -> [..., out_features]. No layers: the identity."""

    def __init__(self, in_features: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        widths = [in_features, *hidden]
        self.layers = nn.ModuleList(linear(a, b, activation) for a, b in pairwise(widths))
        self.activation = activation_named(activation)
        self.out_features = widths[-1]

    def forward(self, h: Tensor) -> Tensor:
        for layer in self.layers:
            h = self.activation(layer(h))
        return h

    def with_jacobian(self, h: Tensor, inputs: int) -> tuple[Tensor, Tensor]:
        """The output [B, H] and its derivative [B, d, H] with respect to the first d = `inputs` inputs; h is [B, n].

        What forward mode over d unit tangents does, with two products fewer: the tangents enter the first layer as its
        weights, and each activation's slope is taken once per unit instead of once per tangent.
        """
        if not self.layers:
            return h, torch.eye(inputs, h.shape[-1], dtype=h.dtype, device=h.device).expand(len(h), -1, -1)
        jacobian: Tensor | None = None
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            pre = layer(h)
            h, slope = torch.func.jvp(self.activation, (pre,), (torch.ones_like(pre),))[:2]
            if jacobian is None:
                pushed = layer.weight[:, :inputs].mT.expand(len(h), -1, -1)
            else:
                pushed = (jacobian.flatten(0, 1) @ layer.weight.mT).unflatten(0, jacobian.shape[:2])
            jacobian = pushed * slope.unsqueeze(1)
        assert jacobian is not None
        return h, jacobian


class MLPEncoder(nn.Module):
    """Features of an image: x [B, C, H, W], c [B, classes] or None -> [B, features].

    Arguments:
        image_shape: (C, H, W).
        context: number of classes, 0 when unconditional.
        hidden: widths of the hidden layers; empty: the pixels themselves.
        activation: relu, leaky_relu, softplus, silu or tanh.
    """

    def __init__(
        self, image_shape: Sequence[int], context: int = 0, *, hidden: Sequence[int], activation: str = "relu"
    ) -> None:
        super().__init__()
        self.stack = Stack(math.prod(image_shape) + context, check_widths("encoder.hidden", hidden), activation)
        self.features = self.stack.out_features

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return self.stack(join(x.flatten(1), c))


class MLPDecoder(nn.Module):
    """The likelihood's natural parameter: z [..., B, d], c [B, classes] or None -> [..., B, C, H, W].

    It is `affine(trunk(z, c))`; the fast paths of Joint need just these two names.

    Arguments:
        latent_dim: d.
        image_shape: (C, H, W).
        context: number of classes, 0 when unconditional.
        hidden: widths of the hidden layers; empty: a linear decoder.
        activation: as in MLPEncoder.
    """

    def __init__(
        self,
        latent_dim: int,
        image_shape: Sequence[int],
        context: int = 0,
        *,
        hidden: Sequence[int],
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        self.stack = Stack(latent_dim + context, check_widths("decoder.hidden", hidden), activation)
        self.affine: nn.Linear | None = linear(self.stack.out_features, math.prod(image_shape))

    def trunk(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """z [..., B, d] -> last hidden layer [..., B, H]."""
        return self.stack(join(z, c))

    def trunk_with_jacobian(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z [B, d] -> last hidden layer [B, H] and its derivative [B, d, H] with respect to z."""
        return self.stack.with_jacobian(join(z, c), z.shape[-1])

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        assert self.affine is not None
        return self.affine(self.trunk(z, c)).unflatten(-1, self.image_shape)
