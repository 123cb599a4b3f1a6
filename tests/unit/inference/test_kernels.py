"""The kernels of a GPU on the CPU, by Triton's interpreter: factors, solutions, and what is not positive definite."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vaerun
from vaerun.inference import factor

PROGRAM = """
import sys, torch
from vaerun.inference import kernels
torch.manual_seed(0)
for d in map(int, sys.argv[1:]):
    spread = torch.randn(3, d, d + 2)
    precision, right = torch.eye(d) + spread @ spread.mT / d, torch.randn(3, d)
    precision[1] = -precision[1]
    lower, inverses, solution = kernels.factor_and_solve(precision, right)
    again = kernels.solve(lower, inverses, right)
    good = [0, 2]
    exact = torch.linalg.cholesky(precision[good].double())
    torch.testing.assert_close(lower[good].double(), exact, rtol=1e-5, atol=1e-6)
    expected = torch.linalg.solve(precision[good].double(), right[good].double())
    for found in (solution, again):
        torch.testing.assert_close(found[good].double(), expected, rtol=1e-5, atol=1e-6)
        assert found[1].isnan().all()
    # A block's inverse is that of the factor's diagonal block.
    size, first = kernels.SIZE, min(d, kernels.SIZE)
    block = torch.linalg.inv(exact[:, :first, :first])
    torch.testing.assert_close(inverses[good, 0, :first, :first].double(), block, rtol=1e-4, atol=1e-5)
    assert torch.equal(solution[0], kernels.factor_and_solve(precision[:1], right[:1])[2][0])  # whatever stands beside
    print(d)
"""


def test_kernels_in_the_interpreter() -> None:
    """Sizes within a block, at its edge, over several blocks."""
    pytest.importorskip("triton")
    environment = {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(vaerun.__file__).parents[1]), "PATH": ""}
    sizes = ["1", "5", "16", "17", "40"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *sizes],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.split() == sizes, done.stderr


def test_the_cpu_takes_no_kernel() -> None:
    import torch

    result, _ = factor.factor_and_solve(torch.eye(3).expand(2, 3, 3), torch.ones(2, 3))
    assert not len(result.inverses)
