"""Cholesky factors of many small precisions, and solutions with them, without the host waiting for the device.

A Laplace step factorises B matrices of d x d and solves with each once or twice. On a GPU the libraries take one launch
for the factor and two for a solution, each of some microseconds' work that waits for the last; a kernel of our own
(kernels.py, written in Triton) does all three at once, a matrix to a block. On the CPU, and for what the kernel does not
take, the libraries do it.

A matrix that is not positive definite has no factor: it becomes NaN, as does what is solved with it, and the trainer
stops the run by name.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

LARGEST = 128  # d beyond which a matrix no longer fits into a block's registers


def cholesky(precision: Tensor) -> Tensor:
    """Lower factors of [B, d, d]; differentiable."""
    factor, info = torch.linalg.cholesky_ex(precision)
    return torch.where((info == 0)[:, None, None], factor, torch.nan)


def factor_and_solve(precision: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Lower factors of [B, d, d], and L^-1 s for s = right [B, d]; without a graph."""
    with torch.no_grad():
        kernels = _kernels(precision)
        if kernels is not None:
            return kernels.factor_and_solve(precision, right)
        factor = cholesky(precision)
        return factor, _solve(factor, right)


def solve(factor: Tensor, right: Tensor) -> Tensor:
    """L^-1 s [B, d] for lower factors of L [B, d, d], which are held, and s = right [B, d]; differentiable in s."""
    if right.is_cuda:
        return _HeldSolve.apply(factor, right)
    return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)


class _HeldSolve(torch.autograd.Function):
    """L is symmetric, so the gradient is a solution too."""

    @staticmethod
    def forward(ctx: Any, factor: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        kernels = _kernels(factor)
        return _solve(factor, right) if kernels is None else kernels.solve(factor, right)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[None, Tensor]:
        return None, _HeldSolve.apply(ctx.saved_tensors[0], incoming)


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    if not right.is_cuda:
        return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)
    # What cholesky_solve calls on a GPU cannot be recorded; two triangular solutions can.
    half = torch.linalg.solve_triangular(factor, right.unsqueeze(-1), upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True).squeeze(-1)


def _kernels(matrices: Tensor) -> ModuleType | None:
    if not matrices.is_cuda or matrices.shape[-1] > LARGEST or matrices.dtype not in (torch.float32, torch.float64):
        return None
    return _triton()


@cache
def _triton() -> ModuleType | None:
    try:
        from vaerun.inference import kernels
    except ImportError:  # torch for Windows and for AMD's older GPUs comes without Triton
        return None
    return kernels
