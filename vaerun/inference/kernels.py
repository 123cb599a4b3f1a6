"""Kernels of inference/factor.py, in Triton: one block of threads for each matrix, 16 columns at a time.

Left-looking Cholesky (Golub & Van Loan 2013, section 4.2.6) of L = C C'. For block column k, with the columns before it
taken away, the 16 x 16 diagonal block is factorised and inverted column by column in registers; the panel below it is
then one product with that inverse, and so are the substitutions: forward along the way, backward at the end. The
inverses are kept for further solutions. Matrices are padded to whole blocks by the identity, which is its own factor. A
pivot below zero gives NaN, which spreads.

What a block writes to global memory is read back by it, hence the barriers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SIZE = 16  # of a block: the least that tl.dot takes


@triton.jit
def _factor_and_solve(precision, right, lower, inverses, solution, d, ROWS: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64)
    precision += place * d * d
    right += place * d
    lower += place * d * d
    solution += place * d
    blocks = tl.cdiv(d, SIZE)
    inverses += place * blocks * SIZE * SIZE
    i, n = tl.arange(0, SIZE), tl.arange(0, ROWS)
    row, column = i[:, None], i[None, :]
    for k in range(blocks):
        at = k * SIZE + i
        edge = at < d
        inside = edge[:, None] & edge[None, :]
        block = tl.load(precision + at[:, None] * d + at[None, :], mask=inside, other=0.0)
        block = tl.where(inside, block, tl.where(row == column, 1.0, 0.0))
        some = (n[:, None] < d) & edge[None, :]
        panel = tl.load(precision + n[:, None] * d + at[None, :], mask=some, other=0.0)
        for j in range(k):
            before = j * SIZE + i
            top = tl.load(lower + at[:, None] * d + before[None, :], mask=edge[:, None], other=0.0)
            left = tl.load(lower + n[:, None] * d + before[None, :], mask=n[:, None] < d, other=0.0)
            block -= tl.dot(top, tl.trans(top), input_precision="ieee")
            panel -= tl.dot(left, tl.trans(top), input_precision="ieee")
        inverse = tl.where(row == column, 1.0, 0.0)
        for c in range(SIZE):
            of_column = tl.sum(tl.where(column == c, block, 0.0), 1)
            of_row = tl.sum(tl.where(row == c, block, 0.0), 0)
            root = 1.0 / tl.sqrt(tl.sum(tl.where(i == c, of_column, 0.0), 0))
            below = tl.where(i > c, of_column * root, 0.0)
            beside = tl.where(i > c, of_row * root, 0.0)
            block -= below[:, None] * beside[None, :]
            solved = tl.sum(tl.where(row == c, inverse, 0.0), 0) * root
            inverse = tl.where(row == c, solved[None, :], inverse - below[:, None] * solved[None, :])
        tl.store(inverses + k * SIZE * SIZE + row * SIZE + column, inverse)
        made = tl.dot(panel, tl.trans(inverse), input_precision="ieee")
        made = tl.where(n[:, None] >= at[None, :], made, 0.0)
        tl.store(lower + n[:, None] * d + at[None, :], made, mask=some)
        # Forward: y_k = C_kk^-1 (b_k - what the blocks before have taken away).
        rest = tl.load(right + n, mask=n < d, other=0.0) if k == 0 else tl.load(solution + n, mask=n < d, other=0.0)
        own = tl.load(right + at, mask=edge, other=0.0) if k == 0 else tl.load(solution + at, mask=edge, other=0.0)
        y = tl.sum(inverse * own[None, :], 1)
        rest -= tl.sum(made * y[None, :], 1)
        tl.debug_barrier()
        tl.store(solution + n, rest, mask=(n < d) & (n >= (k + 1) * SIZE))
        tl.store(solution + at, y, mask=edge)
        tl.debug_barrier()
    _backward(lower, inverses, solution, d, blocks, ROWS, SIZE)


@triton.jit
def _backward(lower, inverses, solution, d, blocks, ROWS: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """x_k = C_kk^-T (y_k - sum over the blocks j after it of C_jk' x_j), in place."""
    i, n = tl.arange(0, SIZE), tl.arange(0, ROWS)
    row, column = i[:, None], i[None, :]
    for back in range(blocks):
        k = blocks - 1 - back
        at = k * SIZE + i
        edge = at < d
        after = (n < d) & (n >= (k + 1) * SIZE)
        panel = tl.load(lower + n[:, None] * d + at[None, :], mask=after[:, None] & edge[None, :], other=0.0)
        x = tl.load(solution + n, mask=after, other=0.0)
        y = tl.load(solution + at, mask=edge, other=0.0) - tl.sum(panel * x[:, None], 0)
        inverse = tl.load(inverses + k * SIZE * SIZE + row * SIZE + column)
        tl.debug_barrier()
        tl.store(solution + at, tl.sum(inverse * y[:, None], 0), mask=edge)
        tl.debug_barrier()


@triton.jit
def _solve(lower, inverses, right, solution, d, ROWS: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64)
    right += place * d
    lower += place * d * d
    solution += place * d
    blocks = tl.cdiv(d, SIZE)
    inverses += place * blocks * SIZE * SIZE
    i, n = tl.arange(0, SIZE), tl.arange(0, ROWS)
    row, column = i[:, None], i[None, :]
    tl.store(solution + n, tl.load(right + n, mask=n < d, other=0.0), mask=n < d)
    tl.debug_barrier()
    for k in range(blocks):
        at = k * SIZE + i
        edge = at < d
        after = (n < d) & (n >= (k + 1) * SIZE)
        inverse = tl.load(inverses + k * SIZE * SIZE + row * SIZE + column)
        y = tl.sum(inverse * tl.load(solution + at, mask=edge, other=0.0)[None, :], 1)
        panel = tl.load(lower + n[:, None] * d + at[None, :], mask=after[:, None] & edge[None, :], other=0.0)
        rest = tl.load(solution + n, mask=after, other=0.0) - tl.sum(panel * y[None, :], 1)
        tl.debug_barrier()
        tl.store(solution + n, rest, mask=after)
        tl.store(solution + at, y, mask=edge)
        tl.debug_barrier()
    _backward(lower, inverses, solution, d, blocks, ROWS, SIZE)


def factor_and_solve(precision: Tensor, right: Tensor, warps: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """For precision L [B, d, d] and right [B, d], float32: C [B, d, d], inverses of its diagonal blocks, L^-1 right."""
    precision, right = precision.contiguous(), right.contiguous()
    d = right.shape[-1]
    warps = warps or (1 if d <= 2 * SIZE else 4)  # measured on an H200
    lower, solution = torch.empty_like(precision), torch.empty_like(right)
    inverses = precision.new_empty(len(right), triton.cdiv(d, SIZE), SIZE, SIZE)
    _factor_and_solve[(len(right),)](
        precision, right, lower, inverses, solution, d, ROWS=_rows(d), SIZE=SIZE, num_warps=warps
    )
    return lower, inverses, solution


def solve(lower: Tensor, inverses: Tensor, right: Tensor, warps: int = 1) -> Tensor:
    """L^-1 right [B, d] with what factor_and_solve gave for L."""
    right = right.contiguous()
    solution, d = torch.empty_like(right), right.shape[-1]
    _solve[(len(right),)](lower, inverses, right, solution, d, ROWS=_rows(d), SIZE=SIZE, num_warps=warps)
    return solution


def _rows(d: int) -> int:
    return max(SIZE, triton.next_power_of_2(d))
