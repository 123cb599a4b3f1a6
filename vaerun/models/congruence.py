"""The products M G M' and v'Gv with G symmetric, at the cost of their symmetry.

Autograd would differentiate the two products one by one: for M [B, d, H] two further products of B d H^2. Because the
result is symmetric, with S = A + A' of the incoming gradient A,

    dM = S (M G),    dG = 1/2 M' S M,

and M G is there already from the forward pass: one product of B d H^2 is left.

Where no gradient is asked for, G = U + U' with U the upper triangle and half the diagonal gives M G M' = N + N' with
N = (M U) M', and v'Gv = 2 v'Uv. By blocks of columns M U needs just the part of U that is not zero: of b blocks
(b + 1) / 2b of M G.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

BLOCK = 128  # columns: products this narrow still run at a CPU's full rate


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
    def backward(ctx: Any, incoming: Tensor | None, of_product: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        m, gram, product = ctx.saved_tensors
        by_m, by_gram = None, None
        if incoming is not None:
            symmetric = incoming + incoming.mT
            by_m = symmetric @ product
            by_gram = 0.5 * (m.flatten(0, 1).mT @ (symmetric @ m).flatten(0, 1))
        if of_product is not None:  # only where the gradient itself is differentiated: product is a function of both
            more_m = (of_product.flatten(0, 1) @ gram).view_as(m)
            more_gram = m.flatten(0, 1).mT @ of_product.flatten(0, 1)
            by_m = more_m if by_m is None else by_m + more_m
            by_gram = more_gram if by_gram is None else by_gram + more_gram
        return by_m, by_gram


def congruence(m: Tensor, gram: Tensor) -> Tensor:
    """M G M' [B, d, d] for contiguous m = M [B, d, H] and symmetric gram = G [H, H]."""
    if torch.is_grad_enabled():
        return _Congruence.apply(m, gram)[0]
    # A GPU is busy with one large product and not with the parts of half of it.
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
    found = product.view_as(m) @ m.mT
    return found + found.mT


def _upper_half(gram: Tensor) -> Tensor:
    """U of G = U + U'."""
    return gram.triu(1) + torch.diag_embed(0.5 * gram.diagonal())


def _blocks(width: int) -> list[tuple[int, int]]:
    """First and last column of each block; a narrow matrix is one."""
    edges = [*range(0, width, BLOCK), width] if width >= 2 * BLOCK else [0, width]
    return list(pairwise(edges))
