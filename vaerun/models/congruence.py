"""The products M G M' and v'Gv for symmetric G, exploiting the symmetry.

Autograd would differentiate the two products separately: for M [B, d, H] two more products of B d H^2 operations.
Because the result is symmetric, with S = A + A' for the incoming gradient A,

    dM = S (M G),    dG = 1/2 M' S M,

and M G is available from the forward pass: one product of B d H^2 is left.

Without gradients, G = U + U' with U the upper triangle and half the diagonal gives M G M' = N + N' with N = (M U) M',
and v'Gv = 2 v'Uv. Computed by blocks of columns, M U needs only the nonzero part of U: with b blocks, (b + 1) / 2b of
the operations of M G.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

BLOCK = 128  # columns; narrower products do not run at a CPU's full rate


class _Congruence(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(m: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
        product = (m.flatten(0, 1) @ gram).view_as(m)
        return product @ m.mT, product

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        m, gram = inputs
        ctx.save_for_backward(m, gram, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_product: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        m, gram, product = ctx.saved_tensors
        grad_m, grad_gram = None, None
        if grad_output is not None:
            symmetric = grad_output + grad_output.mT
            grad_m = symmetric @ product
            grad_gram = 0.5 * (m.flatten(0, 1).mT @ (symmetric @ m).flatten(0, 1))
        if grad_product is not None:  # only in second derivatives, since the product depends on both inputs
            extra_m = (grad_product.flatten(0, 1) @ gram).view_as(m)
            extra_gram = m.flatten(0, 1).mT @ grad_product.flatten(0, 1)
            grad_m = extra_m if grad_m is None else grad_m + extra_m
            grad_gram = extra_gram if grad_gram is None else grad_gram + extra_gram
        return grad_m, grad_gram


def congruence(m: Tensor, gram: Tensor) -> Tensor:
    """M G M' [B, d, d] for contiguous m = M [B, d, H] and symmetric gram = G [H, H]."""
    if torch.is_grad_enabled():
        return _Congruence.apply(m, gram)[0]
    # A GPU runs one large product faster than the blocks of half of it.
    return (m.flatten(0, 1) @ gram).view_as(m) @ m.mT if m.is_cuda else _blockwise_congruence(m, gram)


def quadratic_form(v: Tensor, gram: Tensor) -> Tensor:
    """v' G v of rows v [..., H] for symmetric gram = G [H, H]: [...]."""
    if torch.is_grad_enabled() or v.is_cuda:
        return (v * (v @ gram)).sum(-1)
    half, blocks = _upper_half(gram), _blocks(gram.shape[0])
    parts = [((v[..., :stop] @ half[:stop, start:stop]) * v[..., start:stop]).sum(-1) for start, stop in blocks]
    return 2 * sum(parts[1:], parts[0])


def _blockwise_congruence(m: Tensor, gram: Tensor) -> Tensor:
    rows, half = m.flatten(0, 1), _upper_half(gram)
    product = torch.empty_like(rows)
    for start, stop in _blocks(gram.shape[0]):
        torch.mm(rows[:, :stop], half[:stop, start:stop], out=product[:, start:stop])
    half_result = product.view_as(m) @ m.mT
    return half_result + half_result.mT


def _upper_half(gram: Tensor) -> Tensor:
    """U with G = U + U'."""
    return gram.triu(1) + torch.diag_embed(0.5 * gram.diagonal())


def _blocks(width: int) -> list[tuple[int, int]]:
    """Start and stop column of each block; a narrow matrix is a single block."""
    edges = [*range(0, width, BLOCK), width] if width >= 2 * BLOCK else [0, width]
    return list(pairwise(edges))
