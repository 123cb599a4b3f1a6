"""M G M' and its derivatives against the plain products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vaerun.models.congruence import BLOCK, congruence, quadratic_form

SIZES = [(2, 3, 5), (1, 1, 1), (3, 1, 4), (1, 4, 2)]


def example(b: int, d: int, h: int) -> tuple[Tensor, Tensor]:
    half = torch.randn(h + 2, h)
    return torch.randn(b, d, h, requires_grad=True), (half.mT @ half).requires_grad_()


def plain(m: Tensor, gram: Tensor) -> Tensor:
    return torch.einsum("bih,hk,bjk->bij", m, gram, m)


@pytest.mark.parametrize("size", [*SIZES, (2, 3, 2 * BLOCK - 1), (2, 3, 2 * BLOCK), (2, 3, 3 * BLOCK + 7)])
def test_with_and_without_a_graph(size):
    m, gram = example(*size)
    expected = plain(m, gram)
    torch.testing.assert_close(congruence(m, gram), expected)
    with torch.no_grad():
        without = congruence(m, gram)
    torch.testing.assert_close(without, expected)
    assert torch.equal(without, without.mT)


@pytest.mark.parametrize("width", [1, 5, 2 * BLOCK, 3 * BLOCK + 7])
def test_quadratic_form(width):
    m, gram = example(2, 3, width)
    expected = torch.einsum("bih,hk,bik->bi", m, gram, m)
    torch.testing.assert_close(quadratic_form(m, gram), expected)
    with torch.no_grad():
        torch.testing.assert_close(quadratic_form(m, gram), expected)


@pytest.mark.parametrize("size", SIZES)
def test_gradient(size):
    m, gram = example(*size)
    weights = torch.randn(size[0], size[1], size[1])
    result = torch.autograd.grad((congruence(m, gram) * weights).sum(), (m, gram))
    by_m, by_gram = torch.autograd.grad((plain(m, gram) * weights).sum(), (m, gram))
    torch.testing.assert_close(result[0], by_m)
    # G is symmetric: only the symmetric part of its gradient means anything.
    torch.testing.assert_close(result[1], 0.5 * (by_gram + by_gram.mT))


@pytest.mark.parametrize("size", SIZES)
def test_gradient_of_the_gradient(size):
    m, half = torch.randn(size, requires_grad=True), torch.randn(size[2], size[2], requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda m, half: congruence(m, half.mT @ half), (m, half))


def test_over_replicas():
    actual, expected = [], []
    pairs = [example(2, 3, 5) for _ in range(4)]
    m, gram = (torch.stack(parts).detach().requires_grad_() for parts in zip(*pairs, strict=True))
    weights = torch.randn(4, 2, 3, 3)
    together = torch.vmap(congruence)(m, gram)
    torch.testing.assert_close(together, torch.stack([congruence(*pair) for pair in pairs]))
    (together * weights).sum().backward()
    for pair, weight in zip(pairs, weights, strict=True):
        expected.append(torch.autograd.grad((congruence(*pair) * weight).sum(), pair))
    actual = list(zip(m.grad, gram.grad, strict=True))
    torch.testing.assert_close(actual, expected)
