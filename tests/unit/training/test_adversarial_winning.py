"""What training says and keeps: a discriminator that has won, and which parameters count as the best."""

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
    """Generates black images."""

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
    """A discriminator that takes bright images for real and dark ones for generated."""
    model = AdversarialModel(Constant(), Brightness(), latent_dim=1, image_shape=(1, 1, 1))
    with torch.no_grad():
        model.discriminator.head.weight.fill_(LOGIT)
    return Adversarial(model, NonSaturating(), **options).train()


def step(objective: Adversarial, *batches: list[float], number: int = 0) -> None:
    """One training step with these real pixels in its updates of the discriminator."""
    for pixels in batches:
        noise = torch.zeros(len(pixels), 1)
        objective.discriminator_loss(torch.tensor(pixels).view(-1, 1, 1, 1), None, noise)
    objective.after_step(number)


def told(objective: Adversarial) -> bool:
    diagnostics = objective.diagnostics()
    won = diagnostics.values["discriminator_won"]
    assert won in (0.0, 1.0)
    assert len(diagnostics.warnings) == won
    assert all("\n" not in line and "no mistake for 4 steps" in line for line in diagnostics.warnings)
    return bool(won)


def test_won_after_exactly_so_many_steps() -> None:
    objective = perfect(winning_steps=4)
    found = []
    for _ in range(6):
        step(objective, [0.9, 1.0])
        found.append(told(objective))
    assert found == [False, False, False, True, True, True]
    step(objective, [0.9, 0.2, 1.0])  # one real image taken for a generated one
    assert not told(objective)
    for _ in range(4):
        assert not told(objective)
        step(objective, [0.9])
    assert told(objective)
    # A checkpoint keeps the count; one generated image taken for a real one ends it.
    other = perfect(winning_steps=4)
    other.load_state_dict(objective.state_dict())
    assert told(other)
    assert int(other.won) == 4
    with torch.no_grad():
        other.model.discriminator.head.bias.fill_(2 * LOGIT)
    step(other, [1.0])
    assert not told(other)
    assert int(other.won) == 0


def test_a_logit_of_zero_is_a_mistake() -> None:
    objective = perfect(winning_steps=4)
    for _ in range(3):
        step(objective, [1.0])
    step(objective, [0.5])  # D = 1/2
    assert int(objective.won) == 0


def test_a_step_without_mistake_is_one_of_all_its_updates() -> None:
    objective = perfect(winning_steps=4)
    found = []
    for batches in ([[0.9], [1.0]], [[0.2], [1.0]], [[0.9], [1.0]], [[0.9], [0.2]], [[0.9], [1.0]]):
        step(objective, *batches)
        found.append(int(objective.won))
    assert found == [1, 0, 1, 0, 1]
    step(objective, [0.9])
    assert int(objective.won) == 2
    # Trials in evaluation mode count for nothing.
    objective.train(False)
    objective.discriminator_loss(torch.zeros(1, 1, 1, 1), None, torch.zeros(1, 1))
    objective.train()
    step(objective, [0.9])
    assert int(objective.won) == 3


def test_training_warns_once_while_it_stays_true(tmp_path: Path) -> None:
    split = make_split(shape=(1, 1, 1))
    split.images.fill_(255)
    done = fit(tmp_path, perfect(winning_steps=4), split=split, log_every=1, learning_rate=1e-9)
    assert [line[:8] for line in done.told] == ["step 4: "]
    assert "lower trainer.discriminator_learning_rate" in done.told[0]
    assert [r["train/discriminator_won"] for r in done.records] == [0.0] * 3 + [1.0] * 9
    assert int(load(tmp_path)["objective"]["won"]) == 12


def test_a_warning_that_comes_again_is_told_again(tmp_path: Path) -> None:
    looks = [["a"], ["a", "b"], ["b"], [], ["b"], ["b", "a"]]
    done = fit(tmp_path, Scripted(looks))
    assert done.told == ["step 2: a", "step 4: b", "step 10: b", "step 12: a"]


@pytest.mark.parametrize("validated", [True, False])
def test_without_selection_the_last_parameters_are_kept(validated: bool, tmp_path: Path) -> None:
    scores = iter([5.0, 1.0, float("nan"), 2.0])  # no matter
    objective = Adversarial(make_model(average=True), NonSaturating())
    validate = (lambda: {"val/diversity": next(scores)}) if validated else None
    done = fit(tmp_path, objective, validate=validate, selection=None, early_stopping=1)
    assert done.progress.step == 12
    best = load(tmp_path, "best")
    assert_same_bits(best["objective"], objective.state_dict())
    assert best["epoch"] == done.progress.best_epoch == 4.0
    assert done.progress.best is None
    found = [r["val/diversity"] for r in done.records if "val/diversity" in r]
    assert found == ([5.0, 1.0, None, 2.0] if validated else [])


@pytest.mark.parametrize(
    ("name", "best_epoch"), [("val/classifier_frechet_distance", 2), ("val/precision", 3), ("val/distance_like", 3)]
)
def test_distances_are_minimised(name: str, best_epoch: int, tmp_path: Path) -> None:
    scores = [3.0, 1.0, 4.0, 1.0]
    given = iter(scores)
    objective = Scripted()
    done = fit(tmp_path, objective, validate=lambda: {name: next(given), "val/other": 0.0}, selection=name)
    assert (done.progress.best, done.progress.best_epoch) == (scores[best_epoch - 1], best_epoch)
    best = load(tmp_path, "best")
    assert (best["epoch"], best["selection"]) == (best_epoch, name)
    # A constant gradient makes each step of Adam as long as the rate.
    assert float(best["objective"]["w"]) == pytest.approx(0.01 * 3 * best_epoch, rel=1e-4)


def test_early_stopping_counts_distances_too(tmp_path: Path) -> None:
    given = iter([3.0, 1.0, 4.0, 1.0])
    name = "val/classifier_frechet_distance"
    done = fit(tmp_path, Scripted(), validate=lambda: {name: next(given)}, selection=name, early_stopping=2, epochs=9)
    assert (done.progress.step, done.progress.stale) == (12, 2)


def test_a_streak_between_two_looks_is_told_of() -> None:
    """However rarely it is looked at, and although a mistake ended the streak before that."""
    objective = perfect(winning_steps=4)
    for brightness in ([0.9], [0.9], [0.9], [0.9], [0.2], [0.9]):
        step(objective, brightness)
    assert told(objective)
    assert not told(objective)  # of the steps since then there is nothing to tell
