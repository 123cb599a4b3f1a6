"""Kernels of inference/factor.py, in Triton: one block for each matrix, which stays in its registers.

Column by column, right-looking: with the matrix symmetric, row j is column j, so both factors of the outer product that
is taken away are read from registers. The forward substitution goes along with the factorisation. Blocks are padded to
a power of two by the identity, which is its own factor. A pivot below zero gives NaN, which spreads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _factor_and_solve(precision, right, factor, solution, d, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    rows, columns = i[:, None], i[None, :]
    inside = (rows < d) & (columns < d)
    at = place * d * d + rows * d + columns
    a = tl.load(precision + at, mask=inside, other=0.0)
    a = tl.where(inside, a, tl.where(rows == columns, 1.0, 0.0))
    y = tl.load(right + place * d + i, mask=i < d, other=0.0)
    for j in range(d):
        column = tl.sum(tl.where(columns == j, a, 0.0), 1)
        row = tl.sum(tl.where(rows == j, a, 0.0), 0)
        root = tl.sqrt(tl.sum(tl.where(i == j, column, 0.0), 0))
        left = tl.where(i >= j, column, 0.0) / root
        top = tl.where(i > j, row, 0.0) / root
        solved = tl.sum(tl.where(i == j, y, 0.0), 0) / root
        y = tl.where(i == j, solved, y - tl.where(i > j, left, 0.0) * solved)
        a = tl.where(columns == j, left[:, None], a - left[:, None] * top[None, :])
    x = y
    for k in range(d):
        j = d - 1 - k
        column = tl.sum(tl.where(columns == j, a, 0.0), 1)
        below = tl.sum(tl.where(i > j, column * x, 0.0), 0)
        pivot = tl.sum(tl.where(i == j, column, 0.0), 0)
        x = tl.where(i == j, (tl.sum(tl.where(i == j, x, 0.0), 0) - below) / pivot, x)
    tl.store(solution + place * d + i, x, mask=i < d)
    tl.store(factor + at, tl.where(rows >= columns, a, 0.0), mask=inside)


@triton.jit
def _solve(factor, right, solution, d, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    rows, columns = i[:, None], i[None, :]
    a = tl.load(factor + place * d * d + rows * d + columns, mask=(rows < d) & (columns < d), other=0.0)
    y = tl.load(right + place * d + i, mask=i < d, other=0.0)
    for j in range(d):
        column = tl.sum(tl.where(columns == j, a, 0.0), 1)
        pivot = tl.sum(tl.where(i == j, column, 0.0), 0)
        solved = tl.sum(tl.where(i == j, y, 0.0), 0) / pivot
        y = tl.where(i == j, solved, y - tl.where(i > j, column, 0.0) * solved)
    x = y
    for k in range(d):
        j = d - 1 - k
        column = tl.sum(tl.where(columns == j, a, 0.0), 1)
        below = tl.sum(tl.where(i > j, column * x, 0.0), 0)
        pivot = tl.sum(tl.where(i == j, column, 0.0), 0)
        x = tl.where(i == j, (tl.sum(tl.where(i == j, x, 0.0), 0) - below) / pivot, x)
    tl.store(solution + place * d + i, x, mask=i < d)


WARPS = 4


def factor_and_solve(precision: Tensor, right: Tensor, warps: int = WARPS) -> tuple[Tensor, Tensor]:
    """Lower Cholesky factors of precision [B, d, d] and its solution for right [B, d]."""
    precision, right = precision.contiguous(), right.contiguous()
    factor, solution, d = torch.empty_like(precision), torch.empty_like(right), right.shape[-1]
    _factor_and_solve[(len(right),)](precision, right, factor, solution, d, BLOCK=_block(d), num_warps=warps)
    return factor, solution


def solve(factor: Tensor, right: Tensor, warps: int = WARPS) -> Tensor:
    """The solution for right [B, d] of the matrices with these lower factors [B, d, d]."""
    factor, right = factor.contiguous(), right.contiguous()
    solution, d = torch.empty_like(right), right.shape[-1]
    _solve[(len(right),)](factor, right, solution, d, BLOCK=_block(d), num_warps=warps)
    return solution


def _block(d: int) -> int:
    return max(16, triton.next_power_of_2(d))
