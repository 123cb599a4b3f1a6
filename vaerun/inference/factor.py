"""Batched Cholesky factors of small precision matrices, and solves with them, without host-device synchronisation.

A Laplace step factorises B matrices of d x d, solves with each, and solves again for the gradient. On a GPU the
libraries launch one kernel per factorisation and two per solve, all short and serialised; a custom Triton kernel
(kernels.py) does all three at once. On the CPU, and for inputs the kernel does not support, the libraries are used.

A matrix that is not positive definite has no factor: the factor is then NaN, as are its solutions, and the trainer
stops the run with a named cause. No jitter is added to the diagonal. A precision is that of the prior plus a positive
semidefinite part, so the factor exists in exact arithmetic. Rounding destroys it if the condition number exceeds about
1/eps (1e7 to 1e8 in float32), where the mode search has no accurate digits left either.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAXIMUM_KERNEL_DIM = 128  # above this d, a panel of columns does not fit into the kernel's registers


class Factor(NamedTuple):
    """C with L = C C' [B, d, d], and the inverses of its diagonal blocks if computed by the kernel, else empty."""

    lower: Tensor
    inverses: Tensor


def cholesky(precision: Tensor) -> Tensor:
    """Lower factors of [B, d, d]; differentiable."""
    factor, info = torch.linalg.cholesky_ex(precision)
    return torch.where((info == 0)[:, None, None], factor, torch.nan)


def factor_and_inverse(precision: Tensor) -> tuple[Tensor, Tensor]:
    """C of L = C C' and R = C^-1, both lower triangular [B, d, d]; differentiable."""
    return _FactorAndInverse.apply(precision)


class _FactorAndInverse(torch.autograd.Function):
    """Given R, the derivative takes matrix products only, where autograd's takes four triangular solves.

    From dL = dC C' + C dC' it follows that dC = C Phi(R dL R'), where Phi takes the lower triangle with half the
    diagonal, and dR = -R dC R = -Phi(R dL R') R. With incoming gradients A for C and B for R, the gradient of L is

        R' Phi(C'A - B R') R,  symmetrised.
    """

    @staticmethod
    def forward(ctx: Any, precision: Tensor) -> tuple[Tensor, Tensor]:
        factor = cholesky(precision)
        eye = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
        inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        ctx.save_for_backward(factor, inverse)
        ctx.set_materialize_grads(False)
        return factor, inverse

    @staticmethod
    def backward(ctx: Any, grad_factor: Tensor | None, grad_inverse: Tensor | None) -> Tensor | None:
        factor, inverse = ctx.saved_tensors
        inner: Tensor | None = None
        if grad_factor is not None:
            inner = factor.mT @ grad_factor
        if grad_inverse is not None:
            product = grad_inverse @ inverse.mT
            inner = -product if inner is None else inner - product
        if inner is None:
            return None
        halved = inner.tril() - torch.diag_embed(0.5 * inner.diagonal(dim1=-2, dim2=-1))
        gradient = inverse.mT @ halved @ inverse
        return 0.5 * (gradient + gradient.mT)


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
        # cholesky_solve cannot be captured into a CUDA graph; two triangular solves can.
        half = torch.linalg.solve_triangular(factor.lower, right.unsqueeze(-1), upper=False)
        return torch.linalg.solve_triangular(factor.lower.mT, half, upper=True).squeeze(-1)


def with_implicit_gradient(step: Tensor, residual: Tensor, factor: Factor) -> Tensor:
    """The step [B, d] with the gradient d step = L^-1 d residual of the equation residual [B, d] = 0 that it solves."""
    return _ImplicitGradient.apply(step, residual, *factor)


class _ImplicitGradient(torch.autograd.Function):
    """L is symmetric, so the gradient is a solve with the same factor; L is detached, as in the step's equation."""

    @staticmethod
    def forward(ctx: Any, step: Tensor, residual: Tensor, lower: Tensor, inverses: Tensor) -> Tensor:
        ctx.save_for_backward(lower, inverses)
        return step.clone()

    @staticmethod
    def backward(ctx: Any, grad_step: Tensor) -> tuple[None, Tensor, None, None]:
        factor = Factor(*ctx.saved_tensors)
        if not grad_step.requires_grad:
            return None, solve(factor, grad_step), None, None
        return None, _ImplicitGradient.apply(solve(factor, grad_step), grad_step, *factor), None, None


def _kernels(matrices: Tensor) -> ModuleType | None:
    if not matrices.is_cuda or matrices.shape[-1] > MAXIMUM_KERNEL_DIM or matrices.dtype != torch.float32:
        return None
    return _triton()


@cache
def _triton() -> ModuleType | None:
    try:
        from vaerun.inference import kernels
    except ImportError:  # some torch builds come without Triton
        return None
    return kernels
