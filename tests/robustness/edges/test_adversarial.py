"""Adversarial models at the edges: labels that are none, many classes, a cache that cannot be written, Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.runs.adversarial_runs import CGAN, INFOGAN, Command, environment
from support.runs.evaluating import result

import vaerun
from vaerun.errors import InputError
from vaerun.evaluation.plots.pictures import sample_labels
from vaerun.run.result import keep_provenance, set_selection_space

pytestmark = pytest.mark.usefixtures("command_environment")


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory)


def test_identifiers_are_no_classes(here: Command, tmp_path: Path) -> None:
    """Neither a classifier nor a matching has billions of them: the run tells and ends well."""
    random = np.random.RandomState(0)
    images, labels = random.randint(0, 256, (400, 1, 8, 8)).astype(np.uint8), np.arange(400) + 3_000_000_000
    parts = {"train_images": images[:330], "train_labels": labels[:330]}
    np.savez(tmp_path / "own.npz", **parts, test_images=images[330:], test_labels=labels[330:])
    words = ["data=npz", f"data.path={tmp_path / 'own.npz'}", "data.validation=40"]
    code, _, err = here(*INFOGAN, *words, f"output_dir={tmp_path / 'run'}")
    assert code == 0, err
    assert "no labels of two to 10000 classes, with two or more images" in err
    assert "the labels of npz are not classes: codes are not matched to them" in err
    assert result(tmp_path / "run")["metrics"].keys() == {"test/diversity", "test/mode_collapse"}


def test_a_cache_that_cannot_be_written_is_told_before_training(
    here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("VAERUN_CACHE", str(tmp_path / "file"))
    code, _, err = here(*CGAN, f"output_dir={tmp_path / 'run'}")
    assert code == 2
    assert err.count("\n") == 1
    assert "cannot write to" in err
    assert "set VAERUN_CACHE, or evaluation.quality=false" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("classes", [2, 3, 7, 10, 14])
def test_samples_have_all_labels(classes: int) -> None:
    labels = sample_labels(classes).view(10, 10)
    assert labels.unique().tolist() == list(range(min(classes, 10))) or classes > 10
    assert len(labels.unique()) == classes
    assert bool((labels[:, 1:] != labels[:, :-1]).all())
    assert bool((labels[1:] != labels[:-1]).all())


def test_arrays_say_which_label_a_sample_has(here: Command, tmp_path: Path) -> None:
    code, _, err = here(*CGAN, "evaluation.arrays=true", "evaluation.quality=false", f"output_dir={tmp_path / 'run'}")
    assert code == 0, err
    with np.load(tmp_path / "run" / "arrays.npz") as arrays:
        assert arrays["sample_labels"].tolist() == sample_labels(10).tolist()
        assert arrays["samples"].shape == (100, 1, 8, 8)
    model = vaerun.load_run(tmp_path / "run").model
    with pytest.raises(InputError, match=r"conditional on 10 classes: pass one-hot labels"):
        model.sample(3)
    assert model.sample(3, torch.eye(10)[:3]).shape == (3, 1, 8, 8)
    for variance in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="observation variance must be finite and above 0"):
            model.joint(torch.zeros(2, 1, 8, 8), torch.eye(10)[:2], variance)  # type: ignore[operator]


def test_distances_of_two_classifiers_are_not_compared() -> None:
    """A run that was selected in one classifier's features does not go on in another's."""
    record: dict[str, Any] = {"protocol": {}}
    set_selection_space(record, None)
    assert record == {"protocol": {}}
    set_selection_space(record, "one")
    later: dict[str, Any] = {"protocol": {"started_from": None}}
    keep_provenance(later, record)
    assert later["protocol"] == {"started_from": None, "selection_space": "one"}
    set_selection_space(later, "one")
    with pytest.raises(InputError, match=r"compared in the features of one, and the cache has two"):
        set_selection_space(later, "two")
