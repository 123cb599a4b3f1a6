"""InfoGAN's codes: their distribution, Q against torch.distributions, the bound against enumeration."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor
from torch.distributions import Categorical, Normal
from torch.nn import functional as F

from vaerun.errors import InputError
from vaerun.models import Codes

ALL = [
    Codes([10], 2),
    Codes([3, 2], 1, variance=None),
    Codes([2, 4, 3]),
    Codes([], 3, variance=0.3),
    Codes(continuous=2, variance=None),
    Codes((5,), 0),
]
ALL += [Codes([4], 2, variance=None), Codes([], 3, variance=0.3)]


def draw(codes: Codes, n: int) -> Tensor:
    return codes.from_noise(torch.randn(n, codes.noise_dim))


@pytest.mark.parametrize("codes", ALL)
def test_sizes_and_names(codes: Codes) -> None:
    n, m = len(codes.categorical), codes.continuous
    assert codes.size == codes.noise_dim == sum(codes.categorical) + m
    assert codes.parameters == sum(codes.categorical) + 2 * m
    assert draw(codes, 7).shape == (7, codes.size)
    assert codes.from_noise(torch.randn(2, 7, codes.noise_dim)).shape == (2, 7, codes.size)
    expected = [f"categorical_{i + 1}" for i in range(n)] + [f"continuous_{i + 1}" for i in range(m)]
    assert codes.names == expected
    entropy = {"categorical": math.log(math.prod(codes.categorical)), "continuous": m * math.log(2)}
    assert codes.entropies == pytest.approx({k: v for k, v in entropy.items() if v})


def test_categorical_codes_are_symmetric_and_uniform() -> None:
    """To exchange the noise of two values is to exchange the values: no value can be likelier than another."""
    codes = Codes([4], 0)
    noise = torch.randn(100, 4)
    for order in itertools.permutations(range(4)):
        assert torch.equal(codes.from_noise(noise[:, list(order)]), codes.from_noise(noise)[:, list(order)])
    assert torch.equal(codes.from_noise(noise).argmax(1), noise.argmax(1))
    drawn = draw(Codes([3, 2], 1), 30_000)
    assert set(drawn[:, :5].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(drawn[:, :3].sum(1), torch.ones(30_000))
    assert torch.equal(drawn[:, 3:5].sum(1), torch.ones(30_000))
    pairs = (2 * drawn[:, :3].argmax(1) + drawn[:, 3:5].argmax(1)).bincount(minlength=6)
    assert chisquare(pairs.numpy()).pvalue > 1e-3  # uniform over pairs: each code is, and they are independent


def test_continuous_codes_are_uniform() -> None:
    codes = Codes([], 2)
    v = torch.tensor([[-1.3, 0.0], [0.5, 2.0]])
    expected = torch.tensor([[math.erf(x / math.sqrt(2)) for x in row] for row in v.tolist()])
    torch.testing.assert_close(codes.from_noise(v), expected)
    quantiles = torch.special.ndtri(torch.linspace(0.01, 0.99, 99)).unsqueeze(1).expand(-1, 2)
    torch.testing.assert_close(codes.from_noise(quantiles)[:, 0], torch.linspace(-0.98, 0.98, 99))
    for column in draw(codes, 20_000).T:
        assert kstest(column.numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3
        assert float(column.abs().max()) <= 1


@pytest.mark.parametrize("codes", ALL)
def test_q_against_torch(codes: Codes) -> None:
    b, sizes, m = 9, codes.categorical, codes.continuous
    parameters, code = 3 * torch.randn(b, codes.parameters), draw(codes, b)
    expected: dict[str, Tensor] = {}
    start = 0
    for k in sizes:
        values = code[:, start : start + k].argmax(1)
        part = Categorical(logits=parameters[:, start : start + k]).log_prob(values)
        expected["categorical"] = expected.get("categorical", torch.zeros(b)) + part
        start += k
    for i in range(m):
        variance = parameters[:, start + m + i].exp() + 1e-3
        if codes.variance is not None:
            variance = torch.full((b,), codes.variance)
        part = Normal(parameters[:, start + i], variance.sqrt()).log_prob(code[:, start + i])
        expected["continuous"] = expected.get("continuous", torch.zeros(b)) + part
    torch.testing.assert_close(codes.log_q(parameters, code), expected)
    expected = {k: v + codes.entropies[k] for k, v in expected.items()}
    torch.testing.assert_close(codes.information(parameters, code), expected)
    starts = np.cumsum([0, *sizes])
    best = [parameters[:, a:z].argmax(1) for a, z in itertools.pairwise(starts)]
    assert all(map(torch.equal, codes.predict(parameters), best))
    assert len(codes.predict(parameters)) == len(sizes)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("codes", [c for c in ALL if c.categorical])
def test_categorical_information_is_at_most_the_entropy(codes: Codes, scale: float) -> None:
    """For any parameters, each image: log Q <= 0."""
    result = codes.information(scale * torch.randn(500, codes.parameters), draw(codes, 500))["categorical"]
    assert float(result.max()) <= codes.entropies["categorical"]


def enumerated(k: int) -> Tensor:
    return torch.eye(k)


@pytest.mark.parametrize("blocks", [1, 2, 3, 6])
def test_bound_is_below_the_information_of_a_channel(blocks: int) -> None:
    """Six values of which the image shows the block: I(c; x) = log blocks, exactly, over all values.

    Any Q stays below it, and the posterior, uniform within the block, reaches it.
    """
    codes, code = Codes([6]), enumerated(6)
    image = F.one_hot(torch.arange(6) % blocks, blocks).to(code)
    for _ in range(50):
        q = image @ (3 * torch.randn(blocks, 6))  # Q sees only the image
        assert codes.information(q, code)["categorical"].mean() <= math.log(blocks) + 1e-12
    posterior = torch.log(torch.stack([image[:, b] for b in range(blocks)]) + 1e-300)
    reached = codes.information(image @ posterior, code)["categorical"].mean()
    assert float(reached) == pytest.approx(math.log(blocks), abs=1e-12)


@pytest.mark.parametrize("codes", ALL)
def test_write(codes: Codes) -> None:
    code = draw(codes, 4)
    starts = np.cumsum([0, *codes.categorical, *[1] * codes.continuous])
    for i, name in enumerate(codes.names):
        kind_size = int(starts[i + 1] - starts[i])
        values = torch.arange(4) % kind_size if name.startswith("categorical") else torch.linspace(-1, 1, 4)
        written = codes.set_code(code, i, values)
        part = written[:, starts[i] : starts[i + 1]]
        expected = F.one_hot(values, kind_size).to(code) if values.dtype == torch.int64 else values.unsqueeze(1)
        assert torch.equal(part, expected)
        rest = torch.ones(codes.size, dtype=torch.bool)
        rest[starts[i] : starts[i + 1]] = False
        assert torch.equal(written[:, rest], code[:, rest])
    # Categorical values may come as integers of any type.
    if codes.categorical:
        assert torch.equal(
            codes.set_code(code, 0, torch.ones(4)), codes.set_code(code, 0, torch.ones(4, dtype=torch.int64))
        )


@pytest.mark.parametrize(
    ("categorical", "continuous"),
    [
        ([1], 0),
        ([0], 2),
        ([-3], 2),
        ([10, 1], 0),
        ([2.5], 0),
        ([True], 0),
        (["3"], 0),
        ([3], -1),
        ([3], 1.5),
        ([], True),
    ],
)
def test_what_are_no_codes_is_refused(categorical: Any, continuous: Any) -> None:
    with pytest.raises(InputError, match=r"model\.codes\.categorical must list numbers of values, each at least 2"):
        Codes(categorical, continuous)


def test_variance_is_one_unless_given_or_learned() -> None:
    assert [Codes([2]).variance, Codes([], 1, variance=None).variance] == [1.0, None]
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match=r"model\.codes\.continuous_variance must be above 0, or null"):
            Codes([3], 1, variance=bad)


def test_no_code_at_all_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.codes defines no code"):
        Codes([], 0)
