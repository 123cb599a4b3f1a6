"""The value of a function at a point and its derivative, as a linear map of rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


class LinearMap(Protocol):
    """The value [B, n] of a function at mu [B, d], and its derivative J [n, d] of each row as a linear map."""

    @property
    def value(self) -> Tensor: ...

    def jvp(self, v: Tensor) -> Tensor:
        """J v: [B, d] -> [B, n]."""
        ...

    def vjp(self, w: Tensor) -> Tensor:
        """J' w: [B, n] -> [B, d]."""
        ...

    def jacobian(self) -> Tensor:
        """J', [B, d, n]."""
        ...

    def detach(self) -> LinearMap:
        """The same map without a graph."""
        ...


class AutodiffLinearMap:
    """The LinearMap of any function at z [B, d] by forward- and reverse-mode autodiff; its results are differentiable.

    The function must treat rows of z independently. The Jacobian takes forward mode over the d unit tangents.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], z: Tensor) -> None:
        self.function, self.z = function, z

    @cached_property
    def _reverse(self) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor]]]:
        return torch.func.vjp(self.function, self.z)  # type: ignore[return-value]

    @property
    def value(self) -> Tensor:
        return self._reverse[0]

    def jvp(self, v: Tensor) -> Tensor:
        return torch.func.jvp(self.function, (self.z,), (v,))[1]

    def vjp(self, w: Tensor) -> Tensor:
        return self._reverse[1](w)[0]

    def jacobian(self) -> Tensor:
        eye = torch.eye(self.z.shape[-1], dtype=self.z.dtype, device=self.z.device)
        return torch.vmap(lambda tangent: self.jvp(tangent.expand_as(self.z)), out_dims=1)(eye)

    def detach(self) -> AutodiffLinearMap:
        return AutodiffLinearMap(self.function, self.z.detach())
