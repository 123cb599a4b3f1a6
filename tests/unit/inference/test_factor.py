"""Factors, inverses and implicit steps: values, first and second derivatives against autograd's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vaerun.distributions import PrecisionNormal
from vaerun.inference.factor import cholesky, factor_and_inverse, factor_and_solve, solve, with_implicit_gradient


def precisions(d: int, b: int = 3) -> Tensor:
    spread = torch.randn(b, d, d + 1)
    return torch.eye(d) + spread @ spread.mT


def by_autograd(precision: Tensor) -> tuple[Tensor, Tensor]:
    factor = torch.linalg.cholesky(precision)
    return factor, torch.linalg.solve_triangular(factor, torch.eye(len(factor[0])).expand_as(factor), upper=False)


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("uses", [(1, 0), (0, 1), (1, 1)])
def test_factor_and_inverse(d: int, uses: tuple[int, int]) -> None:
    """Of functions of C alone, of C^-1 alone and of both, whatever stands above the diagonals of their gradients."""
    precision = precisions(d).requires_grad_()
    weights = torch.randn(3, d, d), torch.randn(3, d, d)
    results = []
    for factorise in (factor_and_inverse, by_autograd):
        parts = factorise(precision)
        value = sum(use * (w * part).sin().sum() for use, w, part in zip(uses, weights, parts, strict=True))
        (gradient,) = torch.autograd.grad(value, precision, create_graph=True)
        (second,) = torch.autograd.grad((gradient * weights[0]).sum(), precision)
        # Only the symmetric part means anything: the precision is symmetric.
        results.append([*(p.detach() for p in parts), gradient + gradient.mT, second + second.mT])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_not_positive_definite_is_nan() -> None:
    good = precisions(3, 1)[0]
    precision = torch.stack([good, -good, good]).requires_grad_()
    for result in (
        *factor_and_inverse(precision),
        cholesky(precision),
        *factor_and_solve(precision, torch.ones(3, 3))[1:],
    ):
        assert bool(result[1].isnan().any())
        assert bool(result[[0, 2]].isfinite().all())


@pytest.mark.parametrize("d", [1, 4])
def test_implicit_steps(d: int) -> None:
    """delta = L(p)^-1 s(p), differentiated through its equation with L held, is what autograd finds through both."""
    parameter = torch.randn(3, d).requires_grad_()
    base = precisions(d)

    def equation(p: Tensor) -> tuple[Tensor, Tensor]:
        return p.sin() + 1, base + torch.diag_embed(p.square())

    right, precision = equation(parameter)
    factor, step = factor_and_solve(precision.detach(), right.detach())
    direct = torch.linalg.solve(precision, right)
    torch.testing.assert_close(step, direct)
    residual = right - (precision @ step.unsqueeze(-1)).squeeze(-1)
    weight = torch.randn(3, d)
    (actual,) = torch.autograd.grad(
        (with_implicit_gradient(step, residual, factor) * weight).sum(), parameter, retain_graph=True
    )
    (expected,) = torch.autograd.grad((direct * weight).sum(), parameter)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(solve(factor, right.detach()), step)


def test_a_normal_with_its_inverse_is_the_same_normal() -> None:
    mean, (factor, inverse) = torch.randn(3, 4), factor_and_inverse(precisions(4))
    plain, with_inverse = PrecisionNormal(mean, factor), PrecisionNormal(mean, factor, inverse)
    noise = torch.randn(5, 3, 4)
    for q in (with_inverse, with_inverse.detach()):
        for a, b in zip(q.transform(noise), plain.transform(noise), strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(q.variance, plain.variance)
        torch.testing.assert_close(q.covariance_matrix, plain.covariance_matrix)
