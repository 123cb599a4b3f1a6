"""The classifier whose features are compared: what it learns and computes, and what it leaves alone."""

from __future__ import annotations

import dataclasses
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models.classifying import files, make, refused, scaled, stripes, weights
from support.models.precision import set_precision

from vaerun.data.arrays import digest
from vaerun.errors import InputError, Interrupted, RunError
from vaerun.evaluation.samples import classifier as module
from vaerun.signals import ShutdownSignal
from vaerun.storage.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.RECIPE, "least_steps", 40)
    monkeypatch.setitem(module.RECIPE, "epochs", 1)


# --- what it computes ---


@pytest.mark.parametrize(
    ("shape", "classes"), [((1, 8, 8), 2), ((3, 64, 64), 3), ((1, 9, 33), 2), ((3, 2, 3), 2), ((1, 28, 28), 1623)]
)
def test_shapes(shape: tuple[int, int, int], classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.RECIPE, "least_steps", 2)
    arrays = stripes(shape, min(classes, 5), count=24)
    arrays.train_labels[-1] = classes - 1
    result = make(tmp_path, arrays)
    assert result.classes == classes
    x = scaled(arrays.test_images)
    features, predicted = result.features(x), result.predict(x)
    assert features.shape == (6, 128)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert predicted.shape == (6,)
    assert predicted.dtype == torch.int64
    assert 0 <= int(predicted.min()) <= int(predicted.max()) < classes
    assert result.features(x.double()).dtype == torch.float32
    assert result.features(x[:0]).shape == (0, 128)


def test_it_learns_the_classes(tmp_path: Path) -> None:
    """A row's place is told apart in images that it never saw, grey or in colour."""
    for shape in ((1, 8, 8), (3, 12, 10)):
        arrays = stripes(shape, classes=4, count=80)
        result = make(tmp_path, arrays)
        assert result.accuracy == 1.0
        assert torch.equal(result.predict(scaled(arrays.test_images)), torch.from_numpy(arrays.test_labels))


def test_accuracy_is_that_of_its_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In test images half of which carry a wrong label; None where they carry none."""
    monkeypatch.setattr(module, "BATCH", 7)
    arrays = stripes(count=80)
    labels = arrays.test_labels.copy()
    labels[:5] = 1 - labels[:5]
    wrong = dataclasses.replace(arrays, test_labels=labels)
    result = make(tmp_path, dataclasses.replace(wrong, sha256=digest(wrong)))
    assert result.accuracy == pytest.approx(15 / 20)
    bare = dataclasses.replace(arrays, test_labels=None)
    assert make(tmp_path, dataclasses.replace(bare, sha256=digest(bare))).accuracy is None


def test_features_are_the_last_layers_input(tmp_path: Path) -> None:
    arrays = stripes()
    result = make(tmp_path, arrays)
    x = scaled(arrays.train_images)
    last = result._network[-1]
    assert isinstance(last, torch.nn.Linear)
    logits = result.features(x) @ last.weight.detach().T + last.bias.detach()
    assert torch.equal(logits.argmax(1), result.predict(x))
    assert bool((result.features(x) >= 0).all())


def test_an_image_does_not_depend_on_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation mode: the batch's own statistics play no part, and asking changes nothing."""
    result = make(tmp_path)
    x = scaled(stripes(seed=3).train_images)
    before = {key: value.clone() for key, value in weights(result).items()}
    whole = result.features(x)
    monkeypatch.setattr(module, "BATCH", 4)
    torch.testing.assert_close(result.features(x), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.features(x[:1]), whole[:1], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in weights(result).items())


def test_all_training_images_are_used_equally() -> None:
    """Each epoch is a permutation; its last batch is filled up from the next one."""
    rows = np.concatenate(list(module._batches(10, 4, 10)))
    assert len(rows) == 40
    epochs = rows.reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_learning_rate() -> None:
    rates = [module._learning_rate(step, 1000) for step in range(1000)]
    top = int(np.argmax(rates))
    assert rates[0] == pytest.approx(0.01 * module.RECIPE["learning_rate"])
    assert 80 < top < 100
    assert rates[500] == pytest.approx(0.5 * module.RECIPE["learning_rate"])
    assert all(a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a > b for a, b in pairwise(rates[top:]))


def test_number_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of full batches, within both limits."""
    steps: list[int] = []
    batches = module._batches
    monkeypatch.setattr(module, "_batches", lambda n, size, k: steps.append(k) or batches(n, size, 1))
    monkeypatch.setitem(module.RECIPE, "batch", 8)
    for epochs in (1, 20, 1000):
        monkeypatch.setitem(module.RECIPE, "epochs", epochs)
        make(tmp_path)  # 30 images: 4 batches
    assert steps == [40, 80, module.RECIPE["most_steps"]]


# --- training that is stopped, or killed ---


class Stops(ShutdownSignal):
    """Asked to stop after this look; the first is before training."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.looks = at, 0

    def check(self) -> None:
        super().check()
        self.looks += 1
        if self.looks == self.at:
            self.signum = signal.SIGTERM


@pytest.mark.parametrize("damage", [None, b"damaged", {"step": 3}, {"step": 3, "weights": {}, "adam": {}}, "other"])
def test_stopped_training_goes_on(damage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the very bits of one that nobody stopped; a damaged file is told of, and training begins anew."""
    arrays = stripes()
    whole = weights(make(tmp_path / "whole", arrays))
    for at in (7, 13):
        with pytest.raises(Interrupted):
            make(tmp_path / "stopped", arrays, stop=Stops(at))
        (left,) = files(tmp_path / "stopped")
        assert left.endswith(".unfinished.pt")
        assert load_checkpoint(tmp_path / "stopped" / left)["step"] == {7: 6, 13: 18}[at]  # resumes from the last save
    file = tmp_path / "stopped" / left
    if damage == "other":  # half of it fits: nothing of it may stay
        state = load_checkpoint(file)
        save_checkpoint(file, state | {"adam": {**state["adam"], "param_groups": []}})
    elif isinstance(damage, dict):
        save_checkpoint(file, damage)
    elif damage is not None:
        file.write_bytes(damage)
    result = weights(make(tmp_path / "stopped", arrays))
    assert all(torch.equal(value, result[key]) for key, value in whole.items())
    said = capsys.readouterr().err
    assert (f"{file} is damaged" in said) == (damage is not None)
    assert not file.exists()
    assert len(files(tmp_path / "stopped")) == 1


def test_killed_training_loses_half_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is saved while it goes on, without being asked."""
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    saved: list[int] = []
    write = module.save_checkpoint
    monkeypatch.setattr(
        module, "save_checkpoint", lambda path, state: (saved.append(state.get("step")), write(path, state))
    )
    make(tmp_path)
    assert saved == [*range(1, 40), None]


# --- what it leaves alone ---


def test_it_depends_on_no_state_of_the_run_and_leaves_it_alone(tmp_path: Path) -> None:
    arrays = stripes()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = make(tmp_path / "a", arrays)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    set_precision(torch.float32)
    with torch.no_grad():
        second = make(tmp_path / "b", arrays)
    assert first.name == second.name
    assert all(torch.equal(value, weights(second)[key]) for key, value in weights(first).items())


# --- what cannot be classified ---


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = stripes()
    refused(InputError, lambda: make(tmp_path, dataclasses.replace(arrays, train_labels=None)), "own", "labels")
    one = dataclasses.replace(arrays, train_labels=np.full(30, 3))
    refused(InputError, lambda: make(tmp_path, one), "own", "two classes")
    monkeypatch.setitem(module.RECIPE, "learning_rate", float("inf"))
    refused(RunError, lambda: make(tmp_path), "own", "diverged")
    assert files(tmp_path) == []
