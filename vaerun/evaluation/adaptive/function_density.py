"""A function log f(z) as the LogDensity of a batch: its gradient and Hessian by automatic differentiation.

The Hessian is computed in forward over reverse mode: the derivative of the gradient along each of the d unit tangents,
which are laid out along the first axis of z, so that the function is called once and needs no batching rules of vmap.

Away from a mode the negative Hessian need not be positive definite. Its eigenvalues are then replaced by their absolute
values (saddle-free Newton; Dauphin et al. 2014): a step still ascends, and is as long as the curvature permits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor
from torch.autograd import forward_ad

from vaerun.models.joint import Linearisation

Function = Callable[[Tensor], Tensor]


def positive_definite(matrix: Tensor) -> Tensor:
    """|A| for symmetric A [..., d, d]: its eigenvalues replaced by their absolute values; NaN where A is not finite.

    Eigenvalues below d eps times the largest are rounding errors, and are raised to it.
    """
    matrix = (matrix + matrix.mT) / 2
    finite = matrix.isfinite().flatten(-2).all(-1)[..., None, None]
    values, vectors = torch.linalg.eigh(torch.where(finite, matrix, 0.0))  # of NaN, it raises
    values = values.abs()
    info = torch.finfo(matrix.dtype)
    floor = (matrix.shape[-1] * info.eps * values.amax(-1, keepdim=True)).clamp(min=info.tiny)
    absolute = (vectors * torch.maximum(values, floor).unsqueeze(-2)) @ vectors.mT
    return torch.where(finite, absolute, torch.nan)


class FunctionDensity:
    """The LogDensity (mode_search.py) of a function of z.

    The function always sees all B images: rows that are selected are laid out in as many [B, d] slices as one image has
    repeats, and the places left over are filled.

    Arguments:
        function: z [K, B, d] -> log f [K, B] nats; its rows must not depend on each other.
        filler: [B, d], any point at which the function can be evaluated.
        precision: z [K, B, d] -> [K, B, d, d], positive definite; None: from the Hessian.
        chunk: rows evaluated at once (memory grows with it); at least B, and B d for a Hessian.
    """

    def __init__(self, function: Function, filler: Tensor, *, precision: Function | None = None, chunk: int) -> None:
        self.function, self.filler, self.precision, self.chunk = function, filler, precision, chunk
        self.latent_dim = filler.shape[1]
        self.rows = self.slots = torch.empty(0)  # the image and the slice of each of the M rows
        self._place(torch.arange(len(filler), device=filler.device))

    def _place(self, rows: Tensor) -> None:
        order = rows.argsort(stable=True)
        ordered = rows[order]
        self.rows, self.slots = rows, torch.empty_like(rows)
        self.slots[order] = torch.arange(len(rows), device=rows.device) - torch.searchsorted(ordered, ordered)

    def select(self, rows: Tensor) -> Self:
        """The same for rows [M] of the batch, repeats allowed."""
        view = copy.copy(self)
        view._place(self.rows[rows])
        return view

    def _spread(self, z: Tensor) -> Tensor:
        """z [K, M, d] in its places, [K, S, B, d]."""
        out = self.filler.repeat(len(z), int(self.slots.max()) + 1, 1, 1)
        out[:, self.slots, self.rows] = z
        return out

    def _split(self, z: Tensor, copies: int = 1) -> tuple[Tensor, ...]:
        """z [N, B, d] in parts of `chunk` rows, if each row is evaluated `copies` times."""
        return z.split(max(1, self.chunk // (z.shape[1] * copies)))

    def log_prob(self, z: Tensor) -> Tensor:
        """[K, M, d] -> [K, M] nats."""
        spread = self._spread(z)
        with torch.no_grad():
            values = torch.cat([self.function(part) for part in self._split(spread.flatten(0, 1))])
        return values.unflatten(0, spread.shape[:2])[:, self.slots, self.rows]

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log f [K, M] nats, and its gradient [K, M, d], at z [K, M, d]."""
        spread = self._spread(z)
        parts = [self._with_gradient(part) for part in self._split(spread.flatten(0, 1))]
        value, gradient = (
            torch.cat(p).unflatten(0, spread.shape[:2])[:, self.slots, self.rows] for p in zip(*parts, strict=True)
        )
        return value, gradient

    def log_ratio(self, z: Tensor, mu: Tensor) -> Tensor:
        """log f(z) - log f(mu), [M] nats, for z and mu [M, d]."""
        first, second = self.log_prob(torch.stack([z, mu]))
        return first - second

    def linearise(self, mu: Tensor) -> Linearisation:
        """Gradient [M, d] and precision [M, d, d] of log f at mu [M, d]."""
        spread = self._spread(mu.unsqueeze(0))[0]
        if self.precision is None:
            parts = [self._derivatives(part) for part in self._split(spread, self.latent_dim)]
            gradient, hessian = (torch.cat(values)[self.slots, self.rows] for values in zip(*parts, strict=True))
            return Linearisation(gradient, positive_definite(-hessian))
        gradient = torch.cat([self.gradient(part) for part in self._split(spread)])
        with torch.no_grad():
            precision = torch.cat([self.precision(part) for part in self._split(spread, self.latent_dim)])
        return Linearisation(gradient[self.slots, self.rows], precision[self.slots, self.rows])

    def gradient(self, z: Tensor) -> Tensor:
        """Of log f at z [N, B, d], of the same shape."""
        return self._with_gradient(z)[1]

    @torch.enable_grad()
    def _with_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        value = self.function(z)
        # The gradient of a sum over rows: each depends on its own z alone.
        return value.detach(), torch.autograd.grad(value.sum(), z)[0]

    @torch.enable_grad()
    def _derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient [N, B, d] and Hessian [N, B, d, d] of log f at z [N, B, d]."""
        count, images, d = z.shape
        point = z.detach().repeat(d, 1, 1).requires_grad_()
        tangent = torch.eye(d, dtype=z.dtype, device=z.device).view(d, 1, 1, d).expand(d, count, images, d)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(point, tangent.flatten(0, 1))
            gradient, change = forward_ad.unpack_dual(torch.autograd.grad(self.function(dual).sum(), dual)[0])
            # A function whose gradient is constant has no tangent there.
            change = torch.zeros_like(gradient) if change is None else change
        hessian = change.detach().unflatten(0, (d, count)).movedim(0, -1)
        return gradient.detach()[:count], hessian
