"""Cholesky factors of many small precisions, and solutions with them, without the host waiting for the device.

A Laplace step factorises B matrices of d x d, solves with each, and solves again for the gradient. On a GPU the
libraries take a launch for the factor and two for a solution, each of them short and waiting for the last; a kernel of
our own (kernels.py, in Triton) does all three at once. On the CPU, and for what the kernel does not
take, the libraries do it.

A matrix that is not positive definite has no factor: it becomes NaN, as does what is solved with it, and the trainer
stops the run by name. Nothing is added to the diagonal. A precision is the prior's plus a positive semidefinite part,
so that in exact arithmetic the factor exists. It is lost to rounding where the largest eigenvalue is beyond some 1/eps
times the smallest (float32: 1e7 to 1e8), and there the search has no digits left either.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAXIMUM_KERNEL_DIM = 128  # d beyond which the kernel's panel of columns no longer fits into registers


class Factor(NamedTuple):
    """C of L = C C' [B, d, d], and where the kernel made it the inverses of its diagonal blocks, else empty."""

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
    """With R at hand the derivative takes products alone, where autograd's own takes four triangular solutions.

    From dL = dC C' + C dC' follows dC = C Phi(R dL R'), Phi taking the lower triangle with half the diagonal, and
    dR = -R dC R = -Phi(R dL R') R. With incoming gradients A of C and B of R the gradient of L is therefore

        R' Phi(C'A - B R') R,  made symmetric.
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
    def backward(ctx: Any, of_factor: Tensor | None, of_inverse: Tensor | None) -> Tensor | None:
        factor, inverse = ctx.saved_tensors
        inner: Tensor | None = None
        if of_factor is not None:
            inner = factor.mT @ of_factor
        if of_inverse is not None:
            other = of_inverse @ inverse.mT
            inner = -other if inner is None else inner - other
        if inner is None:
            return None
        halved = inner.tril() - torch.diag_embed(0.5 * inner.diagonal(dim1=-2, dim2=-1))
        found = inverse.mT @ halved @ inverse
        return 0.5 * (found + found.mT)


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


def with_implicit_gradient(step: Tensor, residual: Tensor, factor: Factor) -> Tensor:
    """The step [B, d] as a function of its equation's residual [B, d], zero there: d step = L^-1 d residual."""
    return _ImplicitGradient.apply(step, residual, *factor)


class _ImplicitGradient(torch.autograd.Function):
    """L is symmetric, so the gradient is a solution with the same factor; L is held, as in the step's equation."""

    @staticmethod
    def forward(ctx: Any, step: Tensor, residual: Tensor, lower: Tensor, inverses: Tensor) -> Tensor:
        ctx.save_for_backward(lower, inverses)
        return step.clone()

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[None, Tensor, None, None]:
        factor = Factor(*ctx.saved_tensors)
        if not incoming.requires_grad:
            return None, solve(factor, incoming), None, None
        return None, _ImplicitGradient.apply(solve(factor, incoming), incoming, *factor), None, None


def _kernels(matrices: Tensor) -> ModuleType | None:
    if not matrices.is_cuda or matrices.shape[-1] > MAXIMUM_KERNEL_DIM or matrices.dtype != torch.float32:
        return None
    return _triton()


@cache
def _triton() -> ModuleType | None:
    try:
        from vaerun.inference import kernels
    except ImportError:  # torch comes without Triton on some systems
        return None
    return kernels
