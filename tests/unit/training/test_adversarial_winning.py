"""Warnings and selection in adversarial training: a discriminator that has won, and the best parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.models.adversarial import Scripted, fit, make_model, make_split
from support.runs.commands import assert_same_bits, load
from torch import Tensor, nn

from vaerun.estimators import NonSaturating
from vaerun.models import AdversarialModel
from vaerun.objectives import Adversarial

LOGIT = 3.0


class Constant(nn.Module):
    """A generator of black images."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return (-1 + 0 * self.shift).expand(len(z), 1, 1, 1)


class Brightness(nn.Module):
    features = 1

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return x.flatten(1)


def perfect(**options: int) -> Adversarial:
    """An objective whose discriminator classifies bright images as real and dark ones as generated."""
    model = AdversarialModel(Constant(), Brightness(), latent_dim=1, image_shape=(1, 1, 1))
    with torch.no_grad():
        model.discriminator.head.weight.fill_(LOGIT)
    return Adversarial(model, NonSaturating(), **options).train()


def step(objective: Adversarial, *batches: list[float], number: int = 0) -> None:
    """One training step, with these real pixels in its discriminator updates."""
    for pixels in batches:
        noise = torch.zeros(len(pixels), 1)
        objective.discriminator_loss(torch.tensor(pixels).view(-1, 1, 1, 1), None, noise)
    objective.after_step(number)


def check_won(objective: Adversarial) -> bool:
    diagnostics = objective.diagnostics()
    won = diagnostics.values["discriminator_won"]
    assert won in (0.0, 1.0)
    assert len(diagnostics.warnings) == won
    assert all("\n" not in line and "no mistake for 4 steps" in line for line in diagnostics.warnings)
    return bool(won)


def test_won_after_exactly_so_many_steps() -> None:
    objective = perfect(winning_steps=4)
    won = []
    for _ in range(6):
        step(objective, [0.9, 1.0])
        won.append(check_won(objective))
    assert won == [False, False, False, True, True, True]
    step(objective, [0.9, 0.2, 1.0])  # one real image classified as generated
    assert not check_won(objective)
    for _ in range(4):
        assert not check_won(objective)
        step(objective, [0.9])
    assert check_won(objective)
    # A checkpoint keeps the count; one generated image classified as real resets it.
    other = perfect(winning_steps=4)
    other.load_state_dict(objective.state_dict())
    assert check_won(other)
    assert int(other.won) == 4
    with torch.no_grad():
        other.model.discriminator.head.bias.fill_(2 * LOGIT)
    step(other, [1.0])
    assert not check_won(other)
    assert int(other.won) == 0


def test_a_logit_of_zero_is_a_mistake() -> None:
    objective = perfect(winning_steps=4)
    for _ in range(3):
        step(objective, [1.0])
    step(objective, [0.5])  # D = 1/2
    assert int(objective.won) == 0


def test_a_step_without_mistake_is_one_of_all_its_updates() -> None:
    objective = perfect(winning_steps=4)
    counts = []
    for batches in ([[0.9], [1.0]], [[0.2], [1.0]], [[0.9], [1.0]], [[0.9], [0.2]], [[0.9], [1.0]]):
        step(objective, *batches)
        counts.append(int(objective.won))
    assert counts == [1, 0, 1, 0, 1]
    step(objective, [0.9])
    assert int(objective.won) == 2
    # Losses in evaluation mode do not count.
    objective.train(False)
    objective.discriminator_loss(torch.zeros(1, 1, 1, 1), None, torch.zeros(1, 1))
    objective.train()
    step(objective, [0.9])
    assert int(objective.won) == 3


def test_training_warns_once_while_it_stays_true(tmp_path: Path) -> None:
    split = make_split(shape=(1, 1, 1))
    split.images.fill_(255)
    done = fit(tmp_path, perfect(winning_steps=4), split=split, log_every=1, learning_rate=1e-9)
    assert [line[:8] for line in done.warnings] == ["step 4: "]
    assert "lower trainer.discriminator_learning_rate" in done.warnings[0]
    assert [r["train/discriminator_won"] for r in done.records] == [0.0] * 3 + [1.0] * 9
    assert int(load(tmp_path)["objective"]["won"]) == 12


def test_a_warning_that_comes_again_is_told_again(tmp_path: Path) -> None:
    warnings = [["a"], ["a", "b"], ["b"], [], ["b"], ["b", "a"]]
    done = fit(tmp_path, Scripted(warnings))
    assert done.warnings == ["step 2: a", "step 4: b", "step 10: b", "step 12: a"]


@pytest.mark.parametrize("validated", [True, False])
def test_without_selection_the_last_parameters_are_kept(validated: bool, tmp_path: Path) -> None:
    scores = iter([5.0, 1.0, float("nan"), 2.0])  # ignored
    objective = Adversarial(make_model(average=True), NonSaturating())
    validate = (lambda: {"val/diversity": next(scores)}) if validated else None
    done = fit(tmp_path, objective, validate=validate, selection=None, early_stopping=1)
    assert done.progress.step == 12
    best = load(tmp_path, "best")
    assert_same_bits(best["objective"], objective.state_dict())
    assert best["epoch"] == done.progress.best_epoch == 4.0
    assert done.progress.best is None
    values = [r["val/diversity"] for r in done.records if "val/diversity" in r]
    assert values == ([5.0, 1.0, None, 2.0] if validated else [])


@pytest.mark.parametrize(
    ("name", "best_epoch"), [("val/classifier_frechet_distance", 2), ("val/precision", 3), ("val/distance_like", 3)]
)
def test_distances_are_minimised(name: str, best_epoch: int, tmp_path: Path) -> None:
    scores = [3.0, 1.0, 4.0, 1.0]
    remaining = iter(scores)
    objective = Scripted()
    done = fit(tmp_path, objective, validate=lambda: {name: next(remaining), "val/other": 0.0}, selection=name)
    assert (done.progress.best, done.progress.best_epoch) == (scores[best_epoch - 1], best_epoch)
    best = load(tmp_path, "best")
    assert (best["epoch"], best["selection"]) == (best_epoch, name)
    # With a constant gradient every Adam step has the length of the learning rate.
    assert float(best["objective"]["w"]) == pytest.approx(0.01 * 3 * best_epoch, rel=1e-4)


def test_early_stopping_counts_distances_too(tmp_path: Path) -> None:
    scores = iter([3.0, 1.0, 4.0, 1.0])
    name = "val/classifier_frechet_distance"
    done = fit(tmp_path, Scripted(), validate=lambda: {name: next(scores)}, selection=name, early_stopping=2, epochs=9)
    assert (done.progress.step, done.progress.stale) == (12, 2)


def test_a_streak_between_two_looks_is_told_of() -> None:
    """However rarely diagnostics are read, and even if a mistake has ended the streak by then."""
    objective = perfect(winning_steps=4)
    for brightness in ([0.9], [0.9], [0.9], [0.9], [0.2], [0.9]):
        step(objective, brightness)
    assert check_won(objective)
    assert not check_won(objective)  # no streak since then
