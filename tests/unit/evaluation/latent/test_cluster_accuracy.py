"""A code's categories matched to classes, against every possible matching."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from vaerun.errors import InputError
from vaerun.evaluation.latent.cluster_accuracy import cluster_accuracy


def _brute_force(predicted: Tensor, labels: Tensor, codes: int, classes: int) -> int:
    """The most images that any one-to-one matching has right."""
    pairs = list(zip(predicted.tolist(), labels.tolist(), strict=True))
    if codes <= classes:
        matchings = [dict(enumerate(p)) for p in permutations(range(classes), codes)]
    else:
        matchings = [{code: label for label, code in enumerate(p)} for p in permutations(range(codes), classes)]
    return max(sum(m.get(code) == label for code, label in pairs) for m in matchings)


def _draw(n: int, codes: int, classes: int) -> tuple[Tensor, Tensor]:
    return torch.randint(codes, (n,)), torch.randint(classes, (n,)).clamp(max=torch.randint(classes, (1,)).item())


@pytest.mark.parametrize(("codes", "classes"), [(4, 4), (5, 5), (6, 3), (3, 5), (1, 4), (4, 1), (2, 2)])
def test_no_matching_is_better(codes: int, classes: int) -> None:
    for n in (1, 3, 10, 40):
        predicted, labels = _draw(n, codes, classes)
        result = cluster_accuracy(predicted, labels, codes, classes)
        assert result.accuracy == _brute_force(predicted, labels, codes, classes) / n
        right = sum(result.assignment.get(int(k)) == int(y) for k, y in zip(predicted, labels, strict=True))
        assert result.accuracy == right / n
        assert len(result.assignment) == len(set(result.assignment.values())) == min(codes, classes)
        assert result.images == n


def test_not_greedy() -> None:
    """The largest cell is not in the best matching: 10 + 0 against 9 + 9."""
    predicted = torch.tensor([0] * 10 + [0] * 9 + [1] * 9)
    labels = torch.tensor([0] * 10 + [1] * 9 + [0] * 9)
    result = cluster_accuracy(predicted, labels, 2, 2)
    assert result.assignment == {0: 1, 1: 0}
    assert result.accuracy == 18 / 28


def test_the_table() -> None:
    result = cluster_accuracy(torch.tensor([0, 2, 2, 2, 1]), torch.tensor([1, 0, 0, 1, 1]), 4, 2)
    assert result.contingency.tolist() == [[0, 1], [0, 1], [2, 1], [0, 0]]
    assert result.contingency.dtype == torch.int64
    assert result.accuracy == 3 / 5
    assert result.assignment[2] == 0


def test_a_renamed_code_is_the_same() -> None:
    predicted, labels = _draw(200, 6, 6)
    names = torch.randperm(6)
    before, after = cluster_accuracy(predicted, labels, 6, 6), cluster_accuracy(names[predicted], labels, 6, 6)
    assert before.accuracy == after.accuracy
    assert before.baseline == after.baseline
    assert torch.equal(after.contingency[names], before.contingency)


def test_a_perfect_code() -> None:
    labels = torch.arange(300) % 10
    result = cluster_accuracy((3 * labels + 2) % 10, labels, 10, 10)
    assert result.accuracy == 1
    assert result.assignment == {(3 * k + 2) % 10: k for k in range(10)}
    assert result.baseline < 0.25


def test_more_codes_than_classes_are_errors() -> None:
    """Each class split in halves between two codes, of which one can be matched."""
    labels = torch.arange(40) % 2
    assert cluster_accuracy(torch.arange(40) % 4, labels, 4, 2).accuracy == 0.5


# --------------------------------------------------------------------------------------------------------- baseline


def test_baseline_of_independent_codes() -> None:
    """The mean accuracy of fresh codes that know nothing; well above 1 / 10, for the matching is the best one."""
    labels = torch.arange(500) % 10
    result = [cluster_accuracy(labels[torch.randperm(500)], labels, 10, 10) for _ in range(30)]
    accuracy = torch.tensor([m.accuracy for m in result])
    error = float(accuracy.std()) * (1 / 30 + 1 / 100) ** 0.5
    assert abs(float(accuracy.mean()) - result[0].baseline) < 4 * error
    assert result[0].baseline > 0.14
    assert float(accuracy.std()) < 0.02


def test_baseline_of_every_arrangement() -> None:
    """Codes 0, 0, 1, 1 and labels 0, 0, 1, 1: of the 6 arrangements 2 are all right, 4 half, in the mean 2 / 3.

    The mean over 100 shuffles has a standard error of sqrt(2) / 3 / 2 / 10, about 0.024.
    """
    result = cluster_accuracy(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]), 2, 2)
    assert abs(result.baseline - 2 / 3) < 0.08
    # Codes 0, 0, 1 and three labels: whatever the arrangement, each code is right once.
    assert cluster_accuracy(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2]), 2, 3).baseline == pytest.approx(2 / 3)


def test_baseline_is_no_less_than_always_the_same_answer() -> None:
    """One class in four fifths of the images, codes used evenly: shuffled they reach about 0.3, always one 0.8."""
    labels = (torch.arange(1000) % 5 == 0).long()
    result = cluster_accuracy(torch.arange(1000) % 4, labels, 4, 2)
    assert result.baseline == 0.8
    constant = cluster_accuracy(torch.zeros(1000, dtype=torch.long), labels, 4, 2)
    assert constant.accuracy == constant.baseline == 0.8


def test_baseline_needs_no_luck() -> None:
    predicted, labels = _draw(100, 5, 5)
    first = cluster_accuracy(predicted, labels, 5, 5)
    torch.manual_seed(99)
    assert cluster_accuracy(predicted, labels, 5, 5).baseline == first.baseline


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("predicted", "labels", "words"),
    [
        ([], [], "needs images, but there are none"),
        ([0, 1], [0], r"one label per image, got \[2\] codes and \[1\] labels"),
        ([[0, 1]], [[0, 1]], "one label per image"),
        ([0, 3], [0, 1], "a code must be from 0 to 2, got 3"),
        ([0, -1], [0, 1], "a code must be from 0 to 2, got -1"),
        ([0, 1], [0, 2], "a label must be from 0 to 1, got 2"),
        ([0, 1], [-2, 5], "a label must be from 0 to 1, got -2"),
    ],
)
def test_refused(predicted: list[int], labels: list[int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        cluster_accuracy(torch.tensor(predicted), torch.tensor(labels), 3, 2)
