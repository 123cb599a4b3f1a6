"""A line of per_example.npz leads back to its image, and the hardest and easiest images are named."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.runs.adversarial_runs import GAN, FinishedRun
from support.runs.evaluating import SMALL, Evaluate, result

import vaerun
from vaerun.errors import InputError


def test_a_line_leads_back_to_its_image(copied: Callable[..., Path], evaluate: Evaluate, tmp_path: Path) -> None:
    images = np.random.RandomState(0).randint(0, 256, (70, 1, 8, 8)).astype(np.uint8)
    path = tmp_path / "all.npz"
    np.savez(path, train_images=images, train_labels=np.arange(70) % 3)
    words = ["data=npz", f"data.path={path}", "data.validation=9", *SMALL, "trainer.batch_size=16"]
    folder = copied("model=cvae", *words, "evaluation.images=6")
    run = vaerun.load_run(folder)
    assert {name: len(ids) for name, ids in run.ids.items()} == {"train": 54, "validation": 9, "test": 7}
    assert sorted(np.concatenate(list(run.ids.values()))) == list(range(70))
    for name, ids in run.ids.items():
        np.testing.assert_array_equal(getattr(run.data, name).images.numpy(), images[ids])
    assert evaluate(f"run={folder}", "evaluation.split=validation", "evaluation.amis=false")[0] == 0
    (label,) = result(folder)["evaluations"]
    with np.load(folder / "per_example.npz") as arrays:
        np.testing.assert_array_equal(arrays["row"], run.ids["test"][:6])
        np.testing.assert_array_equal(arrays[f"{label}/row"], run.ids["validation"][:6])


def test_the_ends_are_named(finished: Callable[..., FinishedRun], command_environment: None) -> None:
    run = finished("model=vae", *SMALL)
    (line,) = (line for line in run.out.splitlines() if line.startswith("hardest"))
    with np.load(run.folder / "per_example.npz") as arrays:
        values, rows = arrays["amis"], arrays["row"]
    assert line.startswith("hardest of 12 test images by test/amis (nats): row ")
    named = re.findall(r"row (\d+) \(class \d\) (-?\d+\.\d\d)", line)
    order = np.argsort(values)
    order = [*order[:3], *order[:-4:-1]]
    assert named == [(str(rows[i]), f"{values[i]:.2f}") for i in order]
    assert f"; easiest: row {rows[order[3]]} (class " in line


def test_ends_without_adaptive_importance_sampling(run: Path, evaluate: Evaluate) -> None:
    for split, word in (("test", "evaluation.amis=false"), ("validation", "evaluation.images=2")):
        code, out, _ = evaluate(f"run={run}", f"evaluation.split={split}", word, "evaluation.amis=false")
        assert code == 0
        count = 12 if split == "test" else 2
        (line,) = (line for line in out.splitlines() if line.startswith("hardest"))
        assert line.startswith(f"hardest of {count} {split} images by {split}/log_likelihood (nats): row ")
        assert line.count("row ") == min(6, count)


def test_adversarial_models_have_no_ends(finished: Callable[..., FinishedRun], command_environment: None) -> None:
    run = finished(*GAN)
    assert "hardest" not in run.out
    with np.load(run.folder / "per_example.npz") as arrays:
        np.testing.assert_array_equal(arrays["row"], vaerun.load_run(run.folder).ids["test"][:60])


@pytest.mark.parametrize("damage", ["missing", "truncated", "changed", "objects"])
def test_damaged_names_of_images_are_one_line(stranger: Path, damage: str) -> None:
    path, ids = stranger / "images.npz", vaerun.load_run(stranger).ids
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "changed":
        np.savez(path, **ids | {"test": ids["test"][::-1]})
    else:
        np.savez(path, **ids | {"test": ids["test"].astype(object)})
    with pytest.raises(InputError, match="has no images.npz" if damage == "missing" else "images.npz cannot be read"):
        vaerun.load_run(stranger).ids  # noqa: B018
    assert vaerun.load_run(stranger).model.latent_dim == 2
