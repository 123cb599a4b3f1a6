"""Shared by tests of adversarial runs: small runs, each trained once, and the tiles of their figures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs.evaluating import result
from torch import Tensor

import vaerun
from vaerun.data.dataset import ImageData
from vaerun.models import AdversarialModel

Command = Callable[..., tuple[int, str, str]]

# 250 images in batches of 64: epochs of 4 steps whose last batch has 58; 8 steps are 2 epochs.
QUICK = """trainer.device=cpu trainer.batch_size=64 trainer.max_steps=8 trainer.log_every=2 data.train_images=250
model.latent_dim=4 evaluation.images=60 evaluation.generated.samples=50
evaluation.generated.neighbours=3""".split()  # noqa: SIM905
NETWORKS = {
    "gan_mlp": ["network=gan_mlp", "model.generator.hidden=[8]", "model.discriminator.hidden=[8]"],
    "dcgan": ["network=dcgan", "model.generator.width=4", "model.discriminator.width=4"],
}
QUALITY = {"classifier_frechet_distance", "precision", "recall", "density", "coverage"}
GAN = ("model=gan", *NETWORKS["gan_mlp"], *QUICK)
CGAN = ("model=cgan", *NETWORKS["gan_mlp"], *QUICK)
INFOGAN = ("model=infogan", *NETWORKS["gan_mlp"], *QUICK)
SELECT = ["evaluation.selection=classifier_frechet_distance", "data.validation=80", "evaluation.pictures=0"]
WON = ["trainer.discriminator_learning_rate=0.1", "trainer.learning_rate=1e-9"]
_TRAINED = {
    "dcgan": ["model=dcgan", *NETWORKS["dcgan"], "estimator.discriminator_steps=2", "trainer.average=0.9"],
    "infogan": ["model=infogan", *NETWORKS["gan_mlp"], "estimator.r1=0.5", "model.discriminator.spectral_norm=true"],
    "selected": ["model=cgan", *NETWORKS["gan_mlp"], *SELECT, "trainer.early_stopping=2"],
    # The discriminator makes no mistakes from the third step on.
    "won": ["model=gan", *NETWORKS["gan_mlp"], *WON, "trainer.winning_steps=8", "evaluation.quality=false"],
}
RESUMED = {
    k: [*QUICK, "trainer.max_steps=16", "trainer.log_every=3", "trainer.learning_rate=0.01", *v]
    for k, v in _TRAINED.items()
}
CODES = ("code_categorical_1", "code_continuous_1", "code_continuous_2")
CHEAP = """evaluation.annealing.temperatures=4 evaluation.annealing.chains=3 evaluation.annealing.images=5
evaluation.annealing.adapt=false evaluation.observation.images=3 evaluation.observation.variances=[0.03,0.1]""".split()  # noqa: SIM905
FAST = ["evaluation.quality=false"]
SETS = ["evaluation.sets.a=[1,2,3]", "evaluation.sets.one=[4]"]


def environment(factory: pytest.TempPathFactory) -> dict[str, str]:
    """One cache for the session: the classifier of digits is trained once."""
    variables = {"VAERUN_CACHE": str(factory.getbasetemp() / "adversarial-cache"), "OMP_NUM_THREADS": "1"}
    return {k: v for k, v in os.environ.items() if not k.startswith("VAERUN")} | variables


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, not to be modified, and the output of its command."""

    folder: Path
    out: str
    err: str

    def copy(self, target: Path) -> Path:
        """A copy that may be modified."""
        return Path(shutil.copytree(self.folder, target))


_RUNS: dict[tuple[str, ...], FinishedRun] = {}


def finish(here: Command, factory: pytest.TempPathFactory, words: tuple[str, ...]) -> FinishedRun:
    """The run of these overrides, trained at the first call."""
    if words not in _RUNS:
        folder = factory.mktemp("finished") / "run"
        code, out, err = here(*words, f"output_dir={folder}")
        assert code == 0, err
        _RUNS[words] = FinishedRun(folder, out, err)
    return _RUNS[words]


def save(path: Path, shape: tuple[int, ...], *, classes: int = 0, train: int = 60, test: int = 20) -> Path:
    """A data set of noise, with or without labels; a single class is labelled 1, so that two classes are inferred."""
    random = np.random.RandomState(0)
    arrays = {f"{k}_images": random.randint(0, 256, (n, *shape)) for k, n in (("train", train), ("test", test))}
    if classes:
        arrays |= {
            f"{k}_labels": np.arange(n) % classes + (classes == 1) for k, n in (("train", train), ("test", test))
        }
    np.savez(path, **{k: v.astype(np.uint8) for k, v in arrays.items()})
    return path


def pixels(path: Path) -> Tensor:
    """A figure as [3, H, W], uint8."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def tiles(picture: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tiles [rows, columns, C, H, W] of a picture, before magnification; it must be a framed grid of tiles."""
    channels, height, width = shape
    scale = max(1, 32 // max(height, width))
    h, w = height * scale + 1, width * scale + 1
    rows, columns = divmod(picture.shape[1] - 1, h), divmod(picture.shape[2] - 1, w)
    assert rows[1] == columns[1] == 0
    cells = picture[:, 1:, 1:].reshape(3, rows[0], h, columns[0], w)[:, :, : h - 1, :, : w - 1]
    cells = cells.reshape(3, rows[0], height, scale, columns[0], width, scale)[:, :, :, 0, :, :, 0]
    if channels == 1:  # grey: three equal channels
        assert torch.equal(cells, cells[:1].expand_as(cells))
    return cells[:channels].permute(1, 3, 0, 2, 4)


def levels(images: Tensor) -> Tensor:
    """Images in [0, 1] as the uint8 levels of a PNG file."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def opened(folder: Path) -> tuple[AdversarialModel, ImageData]:
    run = vaerun.load_run(folder)
    assert isinstance(run.model, AdversarialModel)
    return run.model, run.data


def labels(data: ImageData, numbers: list[int]) -> torch.Tensor:
    return data.test.one_hot(torch.tensor(numbers))


def added(folder: Path) -> tuple[str, dict[str, Any]]:
    ((label, evaluation),) = result(folder)["evaluations"].items()
    return label, evaluation


def warned(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("vaerun-eval: warning: ")]


def shown(folder: Path, label: str, name: str, shape: tuple[int, ...] = (1, 8, 8)) -> torch.Tensor:
    return tiles(pixels(folder / "figures" / label / f"{name}.png"), shape)


def assert_close(grid: torch.Tensor, images: torch.Tensor) -> None:
    actual = grid.flatten(0, -4)
    assert actual.shape == images.shape
    assert int((actual.int() - levels(images).int()).abs().max()) <= 1


def assert_shows(folder: Path, name: str, images: torch.Tensor) -> None:
    """The tiles of a figure, row by row, are these images [N, C, H, W] in [0, 1]."""
    actual = tiles(pixels(folder / "figures" / f"{name}.png"), tuple(images.shape[1:])).flatten(0, 1)
    assert actual.shape == images.shape
    # Another order of summation may round a pixel halfway between two grey levels the other way.
    assert int((actual.int() - levels(images).int()).abs().max()) <= 1
    assert float((actual != levels(images)).float().mean()) < 1e-3
    assert len(actual.flatten(1).unique(dim=0)) > 1
