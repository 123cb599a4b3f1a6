"""The product M G M' with G symmetric, at the cost of its symmetry.

Autograd would differentiate the two products one by one: for M [B, d, H] two further products of B d H^2. Because the
result is symmetric, with S = A + A' of the incoming gradient A,

    dM = S (M G),    dG = 1/2 M' S M,

and M G is there already from the forward pass: one product of B d H^2 is left.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Congruence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m: Tensor, gram: Tensor) -> Tensor:
        product = (m.flatten(0, 1) @ gram).view_as(m)
        ctx.save_for_backward(m, product)
        return product @ m.mT

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, Tensor]:
        m, product = ctx.saved_tensors
        symmetric = incoming + incoming.mT
        return symmetric @ product, 0.5 * (m.flatten(0, 1).mT @ (symmetric @ m).flatten(0, 1))


def congruence(m: Tensor, gram: Tensor) -> Tensor:
    """M G M' [B, d, d] for contiguous m = M [B, d, H] and symmetric gram = G [H, H]; differentiable once."""
    return _Congruence.apply(m, gram)
