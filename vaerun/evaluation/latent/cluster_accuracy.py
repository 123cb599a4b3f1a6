"""Clustering accuracy of a categorical code learned without labels (Chen et al. 2016, section 7.2).

Categories are matched to classes one to one so that the accuracy is largest (the assignment problem; Kuhn 1955). As the
matching is optimised on the images that it is evaluated on, an uninformative code does better than chance: ten
categories and ten equal classes give about 0.14 on 1,000 images, not 0.1. The baseline takes that into account.
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
    """Accuracy of a code under the best matching of its categories to classes.

    Attributes:
        accuracy: fraction of images whose category is matched to their class, in [0, 1].
        baseline: accuracy of a code independent of the label, the larger of two: the mean over 100 shuffles of the
            labels, each under its own best matching, and the fraction of images in the largest class, which a constant
            code reaches.
        images: number of images.
        contingency: counts int64 [codes, classes], on the CPU.
        assignment: category -> class, min(codes, classes) pairs. Images of an unmatched category or class are errors.
            A pair left over by the matching may have no images.
    """

    accuracy: float
    baseline: float
    images: int
    contingency: Tensor
    assignment: dict[int, int]


def cluster_accuracy(predicted: Tensor, labels: Tensor, codes: int, classes: int) -> ClusterAccuracy:
    """Match the categories of a code to classes and measure the accuracy.

    Arguments:
        predicted: int [N], the most probable category of each image, 0 to codes - 1.
        labels: int [N], 0 to classes - 1.

    Raises InputError if there are no images, if the numbers of images and labels differ, or if a value is out of range.
    """
    predicted, labels = predicted.detach().cpu().long(), labels.detach().cpu().long()
    if not predicted.numel():
        raise InputError("matching codes to classes needs images, but there are none")
    if predicted.shape != labels.shape or predicted.dim() != 1:
        shapes = f"{list(predicted.shape)} codes and {list(labels.shape)} labels"
        raise InputError(f"matching codes to classes needs one label per image, got {shapes}")
    for what, values, size in ("code", predicted, codes), ("label", labels, classes):
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= size:
            invalid = low if low < 0 else high
            raise InputError(f"matching codes to classes: a {what} must be from 0 to {size - 1}, got {invalid}")

    table = _contingency(predicted, labels, codes, classes)
    assignment = _best_assignment(table)
    shuffled_correct = 0
    for shuffle in range(SHUFFLES):
        shuffled = _contingency(predicted, labels[permutation(len(labels), "matching", shuffle)], codes, classes)
        shuffled_correct += _correct(shuffled, _best_assignment(shuffled))
    images = len(labels)
    return ClusterAccuracy(
        accuracy=_correct(table, assignment) / images,
        baseline=max(shuffled_correct / SHUFFLES, int(table.sum(0).max())) / images,
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
