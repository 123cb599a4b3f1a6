"""Walks through noise: the tiles of every picture are decoded to the very numbers that they were made of."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from support.models.tiles import LIKE, SETS, N, close, generate, generate_with_code, noise_of, tiles
from torch import Tensor

from vaerun.errors import InputError
from vaerun.evaluation.latent import traversals
from vaerun.evaluation.plots import pictures

# ------------------------------------------------------------------------------------------------------------ noise


def test_a_sample_depends_on_its_number_alone() -> None:
    result = traversals.sample_noise([3, 99, 3, 0], 6, LIKE)
    assert result.shape == (4, 6)
    for row, number in zip(result, [3, 99, 3, 0], strict=True):
        assert torch.equal(row, noise_of(number, 6))
    assert not torch.equal(result[0], result[1])


def test_samples_are_in_the_dtype_asked_for() -> None:
    assert traversals.sample_noise([0], 2, torch.zeros((), dtype=torch.float32)).dtype == torch.float32


# ------------------------------------------------------------------------------------------------------------- sets


def test_sets_that_are_right() -> None:
    result = traversals.parse_sets({"smiling": [0, 4, 17], "_b2": (1,), "X": [3, 3]})
    assert result == {"smiling": (0, 4, 17), "_b2": (1,), "X": (3, 3)}


@pytest.mark.parametrize("name", ["2b", "7", "", "a b", "a-b", "é", "a\n", 5, True, None])
def test_names_of_sets_that_are_not(name: object) -> None:
    with pytest.raises(InputError, match=r"^evaluation\.sets\..*letters, digits and _") as caught:
        traversals.parse_sets({name: [1]})
    assert "\n" not in str(caught.value)
    assert str(name).strip() in str(caught.value)


@pytest.mark.parametrize("members", [[], (), "12", 3, None, {1, 2}])
def test_members_that_are_no_list(members: object) -> None:
    with pytest.raises(InputError, match=r"^evaluation\.sets\.right must be a list of one or more"):
        traversals.parse_sets({"fine": [1], "right": members})


@pytest.mark.parametrize("number", [-1, 1.0, True, False, "1", None])
def test_members_that_are_no_sample_numbers(number: object) -> None:
    with pytest.raises(InputError, match=r"^evaluation\.sets\.right: .* integer of at least 0, got"):
        traversals.parse_sets({"right": [1, number]})


# ---------------------------------------------------------------------------------------------------- interpolation


def _stop(*members: int) -> Tensor:
    noise = torch.stack([noise_of(i) for i in members])
    mean = noise.mean(0)
    return mean / mean.norm() * noise.norm(dim=1).mean()


def test_interpolation_row_by_row() -> None:
    picture = traversals.interpolation(generate, [12, "smiling", "one", "3"], SETS, N, LIKE, steps=6)
    result = tiles(picture)
    assert result.shape[:2] == (3, 6)
    places = [noise_of(12), _stop(0, 4, 17), noise_of(7), noise_of(3)]
    for row, (a, b) in enumerate(pairwise(places)):
        close(result[row, :, 0], traversals.slerp(a, b, torch.linspace(0, 1, 6)))
        close(result[row, 0, 0], a)
        close(result[row, -1, 0], b)
    assert bool((result[:, :, 1:] == 0).all())  # no label


def test_a_sample_and_a_set_of_one_are_that_sample_to_the_last_bit() -> None:
    seen: list[Tensor] = []

    def keep(noise: Tensor, c: Tensor | None) -> Tensor:
        seen.append(noise)
        return generate(noise, c)

    traversals.interpolation(keep, ["one", 12], SETS, N, LIKE)
    assert seen[0].shape == (8, N)
    assert torch.equal(seen[0][0], noise_of(7))
    assert torch.equal(seen[0][-1], noise_of(12))


def test_a_set_lies_on_the_shell() -> None:
    """Of its members' mean norm, though their mean is about sqrt(3) times shorter; of the mean's direction."""
    n = 400
    seen: list[Tensor] = []

    def keep(noise: Tensor, c: Tensor | None) -> Tensor:
        seen.append(noise)
        return torch.zeros(len(noise), 1, 2, 2)

    traversals.interpolation(keep, ["smiling", "neutral"], SETS, n, LIKE, steps=2)
    for result, members in zip(seen[0], (SETS["smiling"], SETS["neutral"]), strict=True):
        noise = torch.stack([noise_of(i, n) for i in members])
        mean = noise.mean(0)
        close(result.norm(), noise.norm(dim=1).mean())
        close(result @ mean, result.norm() * mean.norm())
        assert mean.norm() < 0.7 * result.norm()


def test_interpolation_under_a_label() -> None:
    c = torch.tensor([0.0, 0, 1, 0])
    result = tiles(traversals.interpolation(generate, [0, 1, 2], {}, N, LIKE, steps=3, c=c))
    assert result.shape[:2] == (2, 3)
    close(result[:, :, 1:, 0], torch.tensor([2.0, 1.0]).expand(2, 3, 2))


@pytest.mark.parametrize("stops", [[], [1], ["one"], "one", "01"])
def test_fewer_than_two_stops(stops: list[str | int]) -> None:
    with pytest.raises(InputError, match=r"^evaluation\.interpolation needs a list of two or more"):
        traversals.interpolation(generate, stops, SETS, N, LIKE)


@pytest.mark.parametrize("stop", [-1, 1.5, True, None, "1.5", "-1", "a b", ""])
def test_stops_that_are_neither(stop: object) -> None:
    with pytest.raises(
        InputError, match=r"^evaluation\.interpolation: .* is neither the name of a set nor a sample number"
    ):
        traversals.parse_waypoints([0, stop], SETS)  # type: ignore[list-item]


def test_unknown_sets_come_with_the_closest() -> None:
    with pytest.raises(
        InputError, match=r"'smilling'; did you mean smiling\? known sets: smiling, neutral, woman, one"
    ):
        traversals.parse_waypoints(["smilling", 0], SETS)
    with pytest.raises(InputError, match=r"unknown set 'zzz'; known sets: smiling"):
        traversals.parse_waypoints(["zzz", 0], SETS)
    with pytest.raises(InputError, match=r"unknown set 'woman'; define sets under evaluation\.sets"):
        traversals.parse_waypoints(["woman", 0], {})


@pytest.mark.parametrize("steps", [1, 0, -3])
def test_too_few_steps(steps: int) -> None:
    with pytest.raises(InputError, match=r"^evaluation\.interpolation needs at least 2 steps.* got "):
        traversals.interpolation(generate, [0, 1], SETS, N, LIKE, steps=steps)


# ------------------------------------------------------------------------------------------------ codes and classes


def test_values_of_a_code() -> None:
    assert torch.equal(traversals.code_values(4, LIKE), torch.arange(4))
    assert traversals.code_values(100, LIKE).tolist() == list(range(20))
    values = traversals.code_values(None, LIKE)
    close(values, torch.tensor([-2 + 4 * i / 9 for i in range(10)]))
    assert traversals.code_values(None, torch.zeros((), dtype=torch.float32)).dtype == torch.float32


@pytest.mark.parametrize("categories", [None, 4])
def test_a_code_goes_from_left_to_right(categories: int | None) -> None:
    values = traversals.code_values(categories, LIKE)
    result = tiles(traversals.code_sweep(generate_with_code, 3, values, N, LIKE, rows=5))
    assert result.shape[:2] == (5, len(values))
    for row in range(5):
        close(result[row, :, 0], noise_of(row).expand(len(values), -1))
    close(result[:, :, 1], values.to(LIKE).view(1, -1, 1).expand(5, -1, N))
    close(result[:, :, 2], torch.tensor(3.0).expand(5, len(values), N))


def test_a_sweep_has_ten_rows() -> None:
    values = traversals.code_values(2, LIKE)
    assert tiles(traversals.code_sweep(generate_with_code, 0, values, N, LIKE)).shape[:2] == (10, 2)


def test_a_class_a_row() -> None:
    result = tiles(pictures.class_grid(generate, 4, N, LIKE))
    assert result.shape[:2] == (4, 10)
    close(result[:, :, 1, 0], torch.arange(4.0).unsqueeze(1).expand(4, 10))
    for column in range(10):
        close(result[:, column, 0], noise_of(column).expand(4, -1))


def test_a_hundred_classes_at_most() -> None:
    seen: list[Tensor] = []

    def keep(noise: Tensor, c: Tensor | None) -> Tensor:
        assert c is not None
        seen.append(c)
        return torch.zeros(len(noise), 1, 32, 32)

    pictures.class_grid(keep, 130, 2, LIKE)
    assert seen[0].shape == (1000, 130)
    assert torch.equal(seen[0].argmax(1), torch.arange(100).repeat_interleave(10))
