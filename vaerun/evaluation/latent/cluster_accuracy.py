"""How well a code that was learned without labels tells the classes apart (Chen et al. 2016, section 7.2).

Which category of a code stands for which class is arbitrary, so categories are matched to classes one to one, in the
way that makes most images right (the assignment problem; Kuhn 1955). Because the matching is the best one on the very
images that it is judged by, a code that knows nothing of the labels does better than by luck: ten categories and ten
equal classes give about 0.14 on 1,000 images, not 0.1. The baseline takes that into account.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vaerun.errors import InputError
from vaerun.randomness import permutation

SHUFFLES = 100  # the baseline's standard error is a tenth of one shuffle's standard deviation


@dataclass(frozen=True)
class ClusterAccuracy:
    """A code's categories matched to classes.

    Attributes:
        accuracy: share of images whose category is matched to their class, in [0, 1].
        baseline: what a code that is independent of the label reaches, the better of two: the mean accuracy over 100
            shuffles of the labels, each under its own best matching (same use of the categories, same classes, same
            number of images); and the largest class's share, which is the accuracy of a code that is always the same.
        images: how many.
        table: counts int64 [codes, classes], on the CPU.
        assignment: category -> class, min(codes, classes) pairs. Images of a category or a class that is left over are
            errors. A pair that no image supports is only what remained.
    """

    accuracy: float
    baseline: float
    images: int
    contingency: Tensor
    assignment: dict[int, int]


def cluster_accuracy(predicted: Tensor, labels: Tensor, codes: int, classes: int) -> ClusterAccuracy:
    """Match the categories of a code to classes.

    Arguments:
        predicted: int [N], each image's most probable category, 0 to codes - 1.
        labels: int [N], 0 to classes - 1.

    Raises InputError where there are no images, not one label per image, or a number is out of range.
    """
    predicted, labels = predicted.detach().cpu().long(), labels.detach().cpu().long()
    if not predicted.numel():
        raise InputError("matching codes to classes needs images, and there are none")
    if predicted.shape != labels.shape or predicted.dim() != 1:
        shapes = f"{list(predicted.shape)} codes and {list(labels.shape)} labels"
        raise InputError(f"matching codes to classes needs one label per image, got {shapes}")
    for what, values, size in ("code", predicted, codes), ("label", labels, classes):
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= size:
            wrong = low if low < 0 else high
            raise InputError(f"matching codes to classes: a {what} is {wrong}, it must be from 0 to {size - 1}")

    table = _contingency(predicted, labels, codes, classes)
    assignment = _best_assignment(table)
    chance = 0
    for shuffle in range(SHUFFLES):
        shuffled = _contingency(predicted, labels[permutation(len(labels), "matching", shuffle)], codes, classes)
        chance += _correct(shuffled, _best_assignment(shuffled))
    images = len(labels)
    return ClusterAccuracy(
        accuracy=_correct(table, assignment) / images,
        baseline=max(chance / SHUFFLES, int(table.sum(0).max())) / images,
        images=images,
        contingency=table,
        assignment=assignment,
    )


def _contingency(predicted: Tensor, labels: Tensor, codes: int, classes: int) -> Tensor:
    return torch.bincount(predicted * classes + labels, minlength=codes * classes).view(codes, classes)


def _best_assignment(table: Tensor) -> dict[int, int]:
    from scipy.optimize import linear_sum_assignment  # not needed before the first evaluation

    rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
    return dict(zip(rows.tolist(), columns.tolist(), strict=True))


def _correct(table: Tensor, assignment: dict[int, int]) -> int:
    return sum(int(table[code, label]) for code, label in assignment.items())
