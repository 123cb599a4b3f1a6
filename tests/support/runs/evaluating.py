"""Shared by tests of evaluations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from support.runs.commands import TINY

SMALL = [*TINY, "evaluation.samples=30", "evaluation.images=12", "trainer.max_steps=20"]
CHEAP = """evaluation.annealing.temperatures=4 evaluation.annealing.chains=3 evaluation.annealing.leapfrog_steps=2
evaluation.annealing.images=5 evaluation.gap.window=5 evaluation.gap.max_steps=10 evaluation.gap.images=4
evaluation.estimate.samples=20 evaluation.estimate.repeats=2 evaluation.estimate.images=3
evaluation.noise.draws=3 evaluation.noise.images=6 evaluation.noise.samples=2""".split()  # noqa: SIM905
EVERYTHING = [
    f"evaluation.{k}=true" for k in ("ais", "bdmc", "estimates", "gaps", "probe", "gradient_noise", "arrays")
] + CHEAP

Evaluate = Callable[..., tuple[int, str, str]]


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def save(path: Path, shape: tuple[int, ...], labels: bool = True) -> Path:
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (60, *shape)).astype(np.uint8)
    arrays = {"train_images": images[:40], "test_images": images[40:]}
    if labels:
        arrays |= {"train_labels": np.arange(40) % 3, "test_labels": np.arange(20) % 3}
    np.savez(path, **arrays)
    return path
