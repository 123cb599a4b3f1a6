"""Triton kernels of inference/factor.py: one thread block per matrix, 16 columns at a time.

Left-looking Cholesky (Golub & Van Loan 2013, section 4.2.6) of L = C C'. For block column k, after subtracting the
contribution of earlier columns, the 16 x 16 diagonal block is factorised and inverted column by column in registers;
the panel below it is then a product with that inverse, and so are the steps of the substitutions: forward along the
way, backward at the end. The inverses are returned for further solves. Matrices are padded to whole blocks with the
identity, which is its own factor. A negative pivot gives NaN, which propagates.

A thread block reads back what it wrote to global memory, hence the barriers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SIZE = 16  # block size: the minimum for tl.dot


@triton.jit
def _factor_and_solve(precision, right, lower, inverses, solution, d, ROWS: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    matrix = tl.program_id(0).to(tl.int64)
    precision += matrix * d * d
    right += matrix * d
    lower += matrix * d * d
    solution += matrix * d
    blocks = tl.cdiv(d, SIZE)
    inverses += matrix * blocks * SIZE * SIZE
    i, n = tl.arange(0, SIZE), tl.arange(0, ROWS)
    row, column = i[:, None], i[None, :]
    for k in range(blocks):
        columns = k * SIZE + i
        in_range = columns < d
        inside = in_range[:, None] & in_range[None, :]
        block = tl.load(precision + columns[:, None] * d + columns[None, :], mask=inside, other=0.0)
        block = tl.where(inside, block, tl.where(row == column, 1.0, 0.0))
        panel_mask = (n[:, None] < d) & in_range[None, :]
        panel = tl.load(precision + n[:, None] * d + columns[None, :], mask=panel_mask, other=0.0)
        for j in range(k):
            earlier = j * SIZE + i
            top = tl.load(lower + columns[:, None] * d + earlier[None, :], mask=in_range[:, None], other=0.0)
            left = tl.load(lower + n[:, None] * d + earlier[None, :], mask=n[:, None] < d, other=0.0)
            block -= tl.dot(top, tl.trans(top), input_precision="ieee")
            panel -= tl.dot(left, tl.trans(top), input_precision="ieee")
        inverse = tl.where(row == column, 1.0, 0.0)
        for c in range(SIZE):
            pivot_column = tl.sum(tl.where(column == c, block, 0.0), 1)
            pivot_row = tl.sum(tl.where(row == c, block, 0.0), 0)
            inverse_root = 1.0 / tl.sqrt(tl.sum(tl.where(i == c, pivot_column, 0.0), 0))
            scaled_column = tl.where(i > c, pivot_column * inverse_root, 0.0)
            scaled_row = tl.where(i > c, pivot_row * inverse_root, 0.0)
            block -= scaled_column[:, None] * scaled_row[None, :]
            inverse_row = tl.sum(tl.where(row == c, inverse, 0.0), 0) * inverse_root
            inverse = tl.where(row == c, inverse_row[None, :], inverse - scaled_column[:, None] * inverse_row[None, :])
        tl.store(inverses + k * SIZE * SIZE + row * SIZE + column, inverse)
        factor_panel = tl.dot(panel, tl.trans(inverse), input_precision="ieee")
        factor_panel = tl.where(n[:, None] >= columns[None, :], factor_panel, 0.0)
        tl.store(lower + n[:, None] * d + columns[None, :], factor_panel, mask=panel_mask)
        # Forward substitution: y_k = C_kk^-1 (b_k - sum over the blocks j before k of C_kj y_j).
        remainder = (
            tl.load(right + n, mask=n < d, other=0.0) if k == 0 else tl.load(solution + n, mask=n < d, other=0.0)
        )
        right_block = (
            tl.load(right + columns, mask=in_range, other=0.0)
            if k == 0
            else tl.load(solution + columns, mask=in_range, other=0.0)
        )
        y = tl.sum(inverse * right_block[None, :], 1)
        remainder -= tl.sum(factor_panel * y[None, :], 1)
        tl.debug_barrier()
        tl.store(solution + n, remainder, mask=(n < d) & (n >= (k + 1) * SIZE))
        tl.store(solution + columns, y, mask=in_range)
        tl.debug_barrier()
    _backward(lower, inverses, solution, d, blocks, ROWS, SIZE)


@triton.jit
def _backward(lower, inverses, solution, d, blocks, ROWS: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Backward substitution in place: x_k = C_kk^-T (y_k - sum over the blocks j after k of C_jk' x_j)."""
    i, n = tl.arange(0, SIZE), tl.arange(0, ROWS)
    row, column = i[:, None], i[None, :]
    for back in range(blocks):
        k = blocks - 1 - back
        columns = k * SIZE + i
        in_range = columns < d
        later = (n < d) & (n >= (k + 1) * SIZE)
        panel = tl.load(lower + n[:, None] * d + columns[None, :], mask=later[:, None] & in_range[None, :], other=0.0)
        x = tl.load(solution + n, mask=later, other=0.0)
        y = tl.load(solution + columns, mask=in_range, other=0.0) - tl.sum(panel * x[:, None], 0)
        inverse = tl.load(inverses + k * SIZE * SIZE + row * SIZE + column)
        tl.debug_barrier()
        tl.store(solution + columns, tl.sum(inverse * y[:, None], 0), mask=in_range)
        tl.debug_barrier()


@triton.jit
def _solve(lower, inverses, right, solution, d, ROWS: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    matrix = tl.program_id(0).to(tl.int64)
    right += matrix * d
    lower += matrix * d * d
    solution += matrix * d
    blocks = tl.cdiv(d, SIZE)
    inverses += matrix * blocks * SIZE * SIZE
    i, n = tl.arange(0, SIZE), tl.arange(0, ROWS)
    row, column = i[:, None], i[None, :]
    tl.store(solution + n, tl.load(right + n, mask=n < d, other=0.0), mask=n < d)
    tl.debug_barrier()
    for k in range(blocks):
        columns = k * SIZE + i
        in_range = columns < d
        later = (n < d) & (n >= (k + 1) * SIZE)
        inverse = tl.load(inverses + k * SIZE * SIZE + row * SIZE + column)
        y = tl.sum(inverse * tl.load(solution + columns, mask=in_range, other=0.0)[None, :], 1)
        panel = tl.load(lower + n[:, None] * d + columns[None, :], mask=later[:, None] & in_range[None, :], other=0.0)
        remainder = tl.load(solution + n, mask=later, other=0.0) - tl.sum(panel * y[None, :], 1)
        tl.debug_barrier()
        tl.store(solution + n, remainder, mask=later)
        tl.store(solution + columns, y, mask=in_range)
        tl.debug_barrier()
    _backward(lower, inverses, solution, d, blocks, ROWS, SIZE)


def factor_and_solve(precision: Tensor, right: Tensor, warps: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """C [B, d, d], the inverses of its diagonal blocks, and L^-1 right, for L = precision and right [B, d], float32."""
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
    """L^-1 right [B, d], given the factor and inverses that factor_and_solve returned for L."""
    right = right.contiguous()
    solution, d = torch.empty_like(right), right.shape[-1]
    _solve[(len(right),)](lower, inverses, right, solution, d, ROWS=_rows(d), SIZE=SIZE, num_warps=warps)
    return solution


def _rows(d: int) -> int:
    return max(SIZE, triton.next_power_of_2(d))
