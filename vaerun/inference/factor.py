"""Cholesky factors of many small precisions, and solutions with them, without the host waiting for the device.

A Laplace step factorises B matrices of d x d, solves with each, and solves again for the gradient. On a GPU the
libraries take a launch for the factor and two for a solution, each of them short and waiting for the last; a kernel of
our own (kernels.py, in Triton) does all three at once, a matrix to a warp. On the CPU, and for what the kernel does not
take, the libraries do it.

A matrix that is not positive definite has no factor: it becomes NaN, as does what is solved with it, and the trainer
stops the run by name.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

LARGEST = 128  # d beyond which the kernel's panel of columns no longer fits into a warp's registers


class Factor(NamedTuple):
    """C of L = C C' [B, d, d], and where the kernel made it the inverses of its diagonal blocks, else empty."""

    lower: Tensor
    inverses: Tensor


def cholesky(precision: Tensor) -> Tensor:
    """Lower factors of [B, d, d]; differentiable."""
    factor, info = torch.linalg.cholesky_ex(precision)
    return torch.where((info == 0)[:, None, None], factor, torch.nan)


def factor_and_solve(precision: Tensor, right: Tensor) -> tuple[Factor, Tensor]:
    """Factors of L [B, d, d], and L^-1 s for s = right [B, d]; without a graph."""
    with torch.no_grad():
        kernels = _kernels(precision)
        if kernels is not None:
            lower, inverses, solution = kernels.factor_and_solve(precision, right)
            return Factor(lower, inverses), solution
        factor = Factor(cholesky(precision), precision.new_empty(0))
        return factor, solve(factor, right)


def solve(factor: Factor, right: Tensor) -> Tensor:
    """L^-1 s [B, d] for s = right [B, d]; without a graph."""
    with torch.no_grad():
        if len(factor.inverses):
            kernels = _kernels(factor.lower)
            assert kernels is not None
            return kernels.solve(factor.lower, factor.inverses, right)
        if not right.is_cuda:
            return torch.cholesky_solve(right.unsqueeze(-1), factor.lower).squeeze(-1)
        # What cholesky_solve calls on a GPU cannot be recorded; two triangular solutions can.
        half = torch.linalg.solve_triangular(factor.lower, right.unsqueeze(-1), upper=False)
        return torch.linalg.solve_triangular(factor.lower.mT, half, upper=True).squeeze(-1)


def implicit(step: Tensor, residual: Tensor, factor: Factor) -> Tensor:
    """The step [B, d] as a function of its equation's residual [B, d], which is zero there: d step = L^-1 d residual."""
    return _Implicit.apply(step, residual, *factor)


class _Implicit(torch.autograd.Function):
    """L is symmetric, so the gradient is a solution with the same factor; L is held in it, as in the step's equation."""

    @staticmethod
    def forward(ctx: Any, step: Tensor, residual: Tensor, lower: Tensor, inverses: Tensor) -> Tensor:
        ctx.save_for_backward(lower, inverses)
        return step.clone()

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[None, Tensor, None, None]:
        factor = Factor(*ctx.saved_tensors)
        if not incoming.requires_grad:
            return None, solve(factor, incoming), None, None
        return None, _Implicit.apply(solve(factor, incoming), incoming, *factor), None, None


def _kernels(matrices: Tensor) -> ModuleType | None:
    if not matrices.is_cuda or matrices.shape[-1] > LARGEST or matrices.dtype != torch.float32:
        return None
    return _triton()


@cache
def _triton() -> ModuleType | None:
    try:
        from vaerun.inference import kernels
    except ImportError:  # torch comes without Triton on some systems
        return None
    return kernels
