"""What the tests of the classifier share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vaerun.data.arrays import Arrays, digest
from vaerun.evaluation.samples.classifier import Classifier, load_or_train_classifier
from vaerun.signals import ShutdownSignal
from vaerun.tracking.monitor import Monitor


def stripes(shape: tuple[int, int, int] = (1, 8, 8), classes: int = 2, count: int = 40, seed: int = 0) -> Arrays:
    """Images of noise with one bright row, whose number modulo `classes` is the class."""
    random = np.random.RandomState(seed)
    labels = np.arange(count) % classes
    images = random.randint(0, 120, (count, *shape)).astype(np.uint8)
    images[np.arange(count), :, labels % shape[1]] = 255
    held_out = count // 4
    arrays = Arrays(images[held_out:], labels[held_out:], images[:held_out], labels[:held_out], "official")
    return dataclasses.replace(arrays, sha256=digest(arrays))


def scaled(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.astype(np.float32) / 255)


def make(
    folder: Path, arrays: Arrays | None = None, name: str = "own", stop: ShutdownSignal | None = None
) -> Classifier:
    return load_or_train_classifier(arrays or stripes(), name, folder=folder, device="cpu", monitor=Monitor(stop))


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def weights(result: Classifier) -> dict[str, torch.Tensor]:
    return result._network.state_dict()


def refused(error: type[Exception], call: Callable[[], object], *words: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
