"""Vector arithmetic on noise: what an expression means, and the tiles decoded to the numbers that they were made of."""

from __future__ import annotations

import pytest
import torch
from support.models.tiles import LIKE, SCALE, SETS, H, N, W, close, generate, noise_of, tiles
from torch import Tensor

from vaerun.errors import InputError
from vaerun.evaluation.latent import traversals


@pytest.mark.parametrize(
    ("expression", "terms"),
    [
        ("smiling - neutral + woman", [(1, "smiling"), (-1, "neutral"), (1, "woman")]),
        ("  smiling-neutral\n+woman\t", [(1, "smiling"), (-1, "neutral"), (1, "woman")]),
        ("-7+one", [(-1, 7), (1, "one")]),
        ("+ 0", [(1, 0)]),
        ("one", [(1, "one")]),
        ("12 - 12 - 12", [(1, 12), (-1, 12), (-1, 12)]),
    ],
)
def test_expressions(expression: str, terms: list[tuple[int, str | int]]) -> None:
    assert traversals.parse_expression(expression, SETS) == terms


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("+", "missing after the last '[+]'"),
        ("one -", "missing after the last '-'"),
        ("one + - woman", "two signs in a row, the second '-'"),
        ("--one", "two signs in a row, the second '-'"),
        ("one woman", "missing before 'woman'"),
        ("one 3", "missing before '3'"),
        ("one * 2", "'[*]' is neither"),
        ("2*one", "'2[*]one' is neither"),
        ("one + (woman)", r"'\(woman\)' is neither"),
        ("one + 1.5", "'1.5' is neither"),
        ("3d + one", "'3d' is neither"),
        (f"one + {'9' * 5000}", "'9+"),
        ("wooman + one", r"unknown set 'wooman'; did you mean woman\?"),
    ],
)
def test_expressions_that_are_not(expression: str, words: str) -> None:
    with pytest.raises(InputError, match=rf"^evaluation\.arithmetic.*{words}") as caught:
        traversals.arithmetic(generate, expression, SETS, N, LIKE)
    assert "\n" not in str(caught.value)


def _mean(*members: int) -> Tensor:
    return torch.stack([noise_of(i) for i in members]).mean(0)


def test_arithmetic_tile_by_tile() -> None:
    picture, caption = traversals.arithmetic(generate, "smiling-neutral+woman", SETS, N, LIKE)
    assert caption == "smiling - neutral + woman"
    values = tiles(picture)[:, :, 0]
    assert values.shape[:2] == (4, 3)
    means = [_mean(0, 4, 17), _mean(1, 2, 3), _mean(5, 8, 40)]
    close(values[0], torch.stack(means))
    result = means[0] - means[1] + means[2]
    close(values[2, 1], result)


def test_neighbours_are_uniform_around_the_result() -> None:
    """16,000 numbers from U(-1/4, 1/4): their ends to a thousandth, and moments within 5 standard errors."""
    n = 2000
    seen: list[Tensor] = []

    def keep(noise: Tensor, c: Tensor | None) -> Tensor:
        seen.append(noise)
        return torch.zeros(len(noise), 1, 2, 2)

    traversals.arithmetic(keep, "3 - 8", {}, n, LIKE)
    block = seen[0][2:]
    assert block.shape == (9, n)
    result = noise_of(3, n) - noise_of(8, n)
    close(block[4], result)
    offsets = (block - result)[[0, 1, 2, 3, 5, 6, 7, 8]]
    for end in -offsets.min(), offsets.max():
        assert 0.249 < float(end) < 0.25 + 1e-12
    error = (1 / 48 / offsets.numel()) ** 0.5
    assert abs(float(offsets.mean())) < 5 * error
    assert abs(float(offsets.square().mean()) - 1 / 48) < 5 * (1 / 1280 - 1 / 48**2) ** 0.5 / offsets.numel() ** 0.5
    correlation = torch.corrcoef(offsets) - torch.eye(8)
    assert float(correlation.abs().max()) < 5 / n**0.5


@pytest.mark.parametrize("terms", [1, 2, 3, 4])
def test_arithmetic_fills_the_last_row_of_operands(terms: int) -> None:
    numbers = [11, 5, 2, 30][:terms]
    picture, caption = traversals.arithmetic(generate, "-" + "+".join(str(i) for i in numbers), {}, N, LIKE)
    assert caption == "-" + " + ".join(str(i) for i in numbers)
    result = tiles(picture)
    rows = -(-terms // 3)
    assert result.shape[:2] == (rows + 3, 3)
    operands = result[:rows].flatten(0, 1)
    close(operands[:terms, 0], torch.stack([noise_of(i) for i in numbers]))
    assert bool((operands[terms:] == 0).all())  # the blank tiles are mid-grey
    wanted = sum((noise_of(i) for i in numbers[1:]), -noise_of(numbers[0]))
    close(result[rows + 1, 1, 0], wanted)


def test_blank_tiles_have_the_colour_between_tiles() -> None:
    picture, _ = traversals.arithmetic(generate, "11", {}, N, LIKE)
    h, w = H * SCALE + 1, W * SCALE + 1
    assert bool((picture[:, : h + 1, w:] == 0.5).all())
    assert bool((picture[:, :, 0] == 0.5).all())


def test_the_neighbours_are_the_same_for_every_expression() -> None:
    first, second = (
        tiles(traversals.arithmetic(generate, e, SETS, N, LIKE)[0])[1:, :, 0] for e in ("one", "5 - woman")
    )
    close(first - first[1, 1], second - second[1, 1])


def test_arithmetic_under_a_label() -> None:
    c = torch.tensor([0.0, 1, 0])
    result = tiles(traversals.arithmetic(generate, "0 + 1 + 2", {}, N, LIKE, c=c)[0])
    close(result[:, :, 1:, 0], torch.tensor([1.0, 1.0]).expand(4, 3, 2))
