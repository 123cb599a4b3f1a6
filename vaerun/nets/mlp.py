"""Fully connected networks of any depth, and their linearisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from vaerun.nets.init import SLOPES, append_context, check_widths, get_activation, linear


class Stack(nn.Module):
    """Linear layers, each followed by the activation: [..., n] -> [..., out_features]. Without layers, the identity."""

    def __init__(self, in_features: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        widths = [in_features, *hidden]
        self.layers = nn.ModuleList(linear(a, b, activation) for a, b in pairwise(widths))
        self.activation, self.slope = get_activation(activation), SLOPES.get(activation)
        self.out_features = widths[-1]

    def forward(self, h: Tensor) -> Tensor:
        for layer in self.layers:
            h = self.activation(layer(h))
        return h

    def linearise(self, h: Tensor, inputs: int) -> StackLinearMap:
        """The output at h [B, n] and its derivative with respect to the first d = `inputs` inputs."""
        slopes = []
        for layer in self.layers:
            pre = layer(h)
            if self.slope is not None:
                h = self.activation(pre)
                slope = self.slope(h.detach())
            else:
                h, slope = torch.func.jvp(self.activation, (pre,), (torch.ones_like(pre),))[:2]
            slopes.append(slope)
        weights = [cast(nn.Linear, layer).weight for layer in self.layers]
        weights[:1] = [weight[:, :inputs] for weight in weights[:1]]
        return StackLinearMap(h, weights, slopes, inputs)


class StackLinearMap:
    """The value of a Stack at a point and its derivative M as a linear map of rows (models.linear_map.LinearMap).

    Equivalent to forward and reverse mode, but the slope of each activation is computed once per unit, not once per
    tangent.

    Arguments:
        value: [B, H].
        weights: of each layer, [out, in]; those of the first layer for the d inputs only.
        slopes: of the activation of each layer, [B, out].
        inputs: d.
    """

    def __init__(self, value: Tensor, weights: Sequence[Tensor], slopes: Sequence[Tensor], inputs: int) -> None:
        self.value, self.weights, self.slopes, self.inputs = value, weights, slopes, inputs

    def detach(self) -> StackLinearMap:
        """The same map without a graph."""
        with torch.no_grad():
            return StackLinearMap(
                self.value.detach(), [w.detach() for w in self.weights], [s.detach() for s in self.slopes], self.inputs
            )

    def jvp(self, v: Tensor) -> Tensor:
        """M v: [B, d] -> [B, H]."""
        if not self.weights and self.value.shape[-1] != self.inputs:  # identity: the other inputs are constant
            return torch.nn.functional.pad(v, (0, self.value.shape[-1] - self.inputs))
        for weight, slope in zip(self.weights, self.slopes, strict=True):
            v = (v @ weight.mT) * slope
        return v

    def vjp(self, w: Tensor) -> Tensor:
        """M' w: [B, H] -> [B, d]."""
        for weight, slope in zip(reversed(self.weights), reversed(self.slopes), strict=True):
            w = (w * slope) @ weight
        return w[:, : self.inputs]

    def jacobian(self) -> Tensor:
        """M', [B, d, H]."""
        if not self.weights:
            eye = torch.eye(self.inputs, self.value.shape[-1], dtype=self.value.dtype, device=self.value.device)
            return eye.expand(len(self.value), -1, -1)
        first = self.weights[0].mT.contiguous().expand(len(self.value), -1, -1)  # keeps the product contiguous
        jacobian = first * self.slopes[0].unsqueeze(1)
        for weight, slope in zip(self.weights[1:], self.slopes[1:], strict=True):
            pushed = (jacobian.flatten(0, 1) @ weight.mT).unflatten(0, jacobian.shape[:2])
            slope = slope.unsqueeze(1)
            # In place if no gradient needs the operand: these are the largest tensors.
            jacobian = pushed * slope if torch.is_grad_enabled() else pushed.mul_(slope)
        return jacobian


class MLPEncoder(nn.Module):
    """Features of an image: x [B, C, H, W], c [B, classes] or None -> [B, features].

    Arguments:
        image_shape: (C, H, W).
        context: number of classes, 0 when unconditional.
        hidden: widths of the hidden layers; empty: the features are the pixels.
        activation: relu, leaky_relu, softplus, silu or tanh.
    """

    def __init__(
        self, image_shape: Sequence[int], context: int = 0, *, hidden: Sequence[int], activation: str = "relu"
    ) -> None:
        super().__init__()
        self.stack = Stack(math.prod(image_shape) + context, check_widths("model.encoder.hidden", hidden), activation)
        self.features = self.stack.out_features

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return self.stack(append_context(x.flatten(1), c))


class MLPDecoder(nn.Module):
    """The likelihood's natural parameter: z [..., B, d], c [B, classes] or None -> [..., B, C, H, W].

    It has the form `affine(trunk(z, c))`, which is all that the fast paths of Joint require.

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
        self.stack = Stack(latent_dim + context, check_widths("model.decoder.hidden", hidden), activation)
        self.affine: nn.Linear | None = linear(self.stack.out_features, math.prod(image_shape))

    def trunk(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """z [..., B, d] -> last hidden layer [..., B, H]."""
        return self.stack(append_context(z, c))

    def linearise_trunk(self, z: Tensor, c: Tensor | None = None) -> StackLinearMap:
        """The last hidden layer at z [B, d] and its derivative with respect to z."""
        return self.stack.linearise(append_context(z, c), z.shape[-1])

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        assert self.affine is not None
        return self.affine(self.trunk(z, c)).unflatten(-1, self.image_shape)
