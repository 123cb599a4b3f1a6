"""Initialisation, activations and argument checks shared by all networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaerun.errors import InputError

MAXIMUM_SIZE = 10**9  # of a layer, so that element counts of tensors fit into 64 bits
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "softplus": F.softplus,
    "silu": F.silu,
    "tanh": F.tanh,
}


SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda value: value.sign(),
    "leaky_relu": lambda value: torch.where(value > 0, 1.0, 0.01).to(value.dtype),
}
"""Derivatives of piecewise linear activations, from their outputs; locally constant, so never differentiated."""


def get_activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation with this name; raises InputError if there is none."""
    if not isinstance(name, str) or name not in ACTIVATIONS:  # a list is not hashable
        raise InputError(f"unknown activation '{name}': choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def check_widths(key: str, widths: Sequence[int]) -> list[int]:
    """Layer widths as a list; raises InputError unless each is a positive integer of at most MAXIMUM_SIZE."""
    listed = isinstance(widths, list | tuple)
    if not listed or any(not isinstance(w, int) or isinstance(w, bool) or w < 1 for w in widths):
        raise InputError(f"{key} must be a list of positive integers such as [500,500], got {widths}")
    if max(widths, default=0) > MAXIMUM_SIZE:
        raise InputError(f"{key} must list widths of at most {MAXIMUM_SIZE}, got {max(widths)}")
    return list(widths)


def check_integer(key: str, value: object, minimum: int) -> int:
    """Return the value; raises InputError unless it is an integer from `minimum` to MAXIMUM_SIZE."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise InputError(f"{key} must be an integer of at least {minimum}, got {value}")
    if value > MAXIMUM_SIZE:
        raise InputError(f"{key} must be at most {MAXIMUM_SIZE}, got {value}")
    return value


def check_bool(key: str, value: object) -> bool:
    """Return the value; raises InputError unless it is true or false."""
    if not isinstance(value, bool):
        raise InputError(f"{key} must be true or false, got {value}")
    return value


def initialise(layer: nn.Module, activation: str = "linear") -> None:
    """He et al. (2015) normal initialisation, fan-out mode, zero bias, in place.

    The gain is that of the activation after the layer: sqrt(2) for a ReLU, 1 for none (the protocol of Park et al.
    2019: two ReLU layers and one linear layer).
    """
    assert isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    known = activation if activation in ("relu", "leaky_relu", "tanh", "linear") else "relu"
    # PyTorch swaps the fans of a transposed convolution.
    mode = "fan_in" if isinstance(layer, nn.ConvTranspose2d) else "fan_out"
    nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity=known)  # type: ignore[arg-type]
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def linear(inputs: int, outputs: int, activation: str = "linear") -> nn.Linear:
    """An initialised affine map [..., inputs] -> [..., outputs]."""
    layer = nn.Linear(inputs, outputs)
    initialise(layer, activation)
    return layer


def head(inputs: int, outputs: int) -> nn.Linear:
    """An affine map to the parameters of q: [..., inputs] -> [..., outputs].

    PyTorch's default weights (uniform within 1/sqrt(fan-in)), zero bias. Fan-out initialisation would scale the
    output's variance by inputs/outputs, about tenfold here; log-variances that wide cost a VAE most of its first epochs
    (CIFAR-10, one hidden layer of 128, d = 16, 4 epochs: training ELBO 1756 nats with these heads, 536 with fan-out).
    """
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.bias)
    return layer


def append_context(z: Tensor, c: Tensor | None) -> Tensor:
    """z [..., B, n] with the context c [B, classes] appended: [..., B, n + classes]."""
    if c is None:
        return z
    return torch.cat([z, c.to(z.dtype).expand(*z.shape[:-1], -1)], dim=-1)
