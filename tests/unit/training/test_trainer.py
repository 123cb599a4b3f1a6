"""The training loop, on an objective with known gradients: batches, means, schedules, selection, checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.runs.commands import assert_same_bits, load
from torch import Tensor, nn

from vaerun.data.dataset import Batch, Split
from vaerun.data.transforms import Transform
from vaerun.errors import InputError, RunError
from vaerun.objectives import Diagnostics, Phase
from vaerun.randomness import permutation
from vaerun.storage.checkpoint import CheckpointManager
from vaerun.tracking.logger import RunLogger
from vaerun.training import Hooks, Trainer, TrainSettings, TrainState, make_optimisers, restore
from vaerun.training.settings import lr_multiplier

pytestmark = pytest.mark.usefixtures("single_precision")


class Toy(nn.Module):
    """Loss w x + v x for the mean pixel x of each image: gradients are the batch's mean pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.phases = {"toy": Phase({"network": [self.w], "variance": [self.v]})}
        self.rows: list[Tensor] = []
        self.noise: list[float] = []
        self.gradients: list[list[float]] = []
        self.values: list[list[float]] = [[0.0, 0.0]]

    def loss(self, phase: str, step: int, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        x = batch.x.flatten(1).mean(1)
        self.rows.append(batch.rows)
        self.noise.append(torch.rand(()).item())
        return self.w * x + self.v * x, {"pixel": x}

    def diagnostics(self) -> Diagnostics:
        return Diagnostics()

    def after_step(self, step: int) -> None:
        self.gradients.append([self.w.grad.item(), self.v.grad.item()])  # type: ignore[union-attr]
        self.values.append([self.w.item(), self.v.item()])


def toy(
    folder: Path,
    images: Tensor | None = None,
    scores: list[float] | None = None,
    resume: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """Train a Toy; return it with its final state, logged metrics and pixels."""
    images = torch.randint(1, 256, (150, 1, 2, 2), dtype=torch.uint8) if images is None else images
    split = Split("train", images, None, 0, Transform(), False)
    options = {"seed": 3, "epochs": 2, "batch_size": 128, "learning_rate": 0.01, "log_every": 1000} | settings
    log = RunLogger(folder, position=None, start_step=0, total_steps=0, images_per_step=1, show=False)
    objective, checkpoints, remaining = Toy(), CheckpointManager(folder / "checkpoints", "f", print), iter(scores or [])
    validate = None if scores is None else lambda: {"val/elbo": next(remaining)}
    try:
        train_settings, hooks = TrainSettings(**options), Hooks(validate=validate)
        rest = {"hooks": hooks, "logger": log, "checkpoints": checkpoints, "checkpoint": resume}
        progress = Trainer(objective, split, train_settings, train_settings.plan(len(split)), **rest).train()
    finally:
        log.close()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return SimpleNamespace(
        objective=objective, progress=progress, records=records, x=(images / 255).flatten(1).mean(1).double()
    )


def test_each_image_once_an_epoch_and_ragged_batches_exact(tmp_path: Path) -> None:
    done = toy(tmp_path)
    rows = done.objective.rows
    assert [len(r) for r in rows] == [128, 22, 128, 22]
    for epoch in range(2):
        order = torch.cat(rows[2 * epoch : 2 * epoch + 2])
        assert torch.equal(order, permutation(150, 3, "epoch", epoch))
        assert sorted(order.tolist()) == list(range(150))
    assert not torch.equal(torch.cat(rows[:2]), torch.cat(rows[2:]))
    expected = [[float(done.x[r].mean())] * 2 for r in rows]  # the mean over a smaller batch divides by its size
    np.testing.assert_allclose(done.objective.gradients, expected, rtol=1e-6)
    # Logged metrics are means over images, not means of batch means.
    mean, mean_of_means = float(done.x.mean()), float(np.mean(expected))
    assert abs(mean - mean_of_means) > 1e-3
    assert done.records[-1]["train/pixel"] == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "burda"])
def test_rates_reach_the_parameters(schedule: str, tmp_path: Path) -> None:
    # With a constant gradient every Adam step has the length of the learning rate.
    images = torch.full((8, 1, 1, 1), 255, dtype=torch.uint8)
    rates = {"learning_rate": 0.01, "variance_learning_rate": 0.03}
    done = toy(tmp_path, images, schedule=schedule, epochs=5, batch_size=4, log_every=1, **rates)
    steps = -np.diff(np.array(done.objective.values), axis=0)
    multipliers = [lr_multiplier(schedule, step // 2, step / 10) for step in range(10)]
    np.testing.assert_allclose(steps, np.outer(multipliers, list(rates.values())), rtol=1e-3, atol=1e-8)
    assert [r["train/learning_rate"] for r in done.records] == pytest.approx([0.01 * m for m in multipliers])


def test_rate_of_the_settings_counts_after_a_resume(tmp_path: Path) -> None:
    images = torch.full((8, 1, 1, 1), 255, dtype=torch.uint8)
    toy(tmp_path, images, batch_size=4)
    state = load(tmp_path)
    state["progress"] |= {"finished": False}
    done = toy(tmp_path, images, batch_size=4, epochs=3, learning_rate=0.1, resume=state)
    assert done.objective.values[-2:] == [pytest.approx([-0.14, -0.14]), pytest.approx([-0.24, -0.24])]
    assert done.records[-1]["train/learning_rate"] == 0.1


def test_noise_is_of_seed_and_step(tmp_path: Path) -> None:
    first, second, other = (toy(tmp_path, seed=seed).objective.noise for seed in (3, 3, 4))
    assert first == second
    assert len({*first, *other}) == 8


def test_schedules() -> None:
    burda = [lr_multiplier("burda", epoch, 0.0) for epoch in range(3280)]
    exponents = np.rint([-7 * math.log10(f) for f in burda]).astype(int)
    np.testing.assert_allclose(burda, 10.0 ** (-exponents / 7), rtol=1e-12)
    assert exponents.tolist() == [i for i in range(8) for _ in range(3**i)]
    assert lr_multiplier("burda", 10_000, 1.0) == burda[-1]
    assert [lr_multiplier("cosine", 0, p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert [lr_multiplier("step", 0, p) for p in (0, 0.49, 0.5, 0.74, 0.75, 1)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert lr_multiplier("constant", 99, 0.9) == 1
    with pytest.raises(ValueError, match="unknown schedule 'linear'"):
        lr_multiplier("linear", 0, 0.0)


def test_clipping_is_of_the_whole_norm(tmp_path: Path) -> None:
    images = torch.full((8, 1, 1, 1), 255, dtype=torch.uint8)
    unclipped, loose, clipped = (
        np.array(toy(tmp_path, images, batch_size=4, clip_norm=norm).objective.gradients) for norm in (None, 2.0, 0.1)
    )
    np.testing.assert_array_equal(unclipped, 1.0)
    np.testing.assert_array_equal(loose, unclipped)
    np.testing.assert_allclose(clipped, 0.1 / math.sqrt(2), rtol=1e-4)


def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    scores = [1.0, 3.0, 2.0, 3.0, 9.0]  # a tie is no improvement
    done = toy(tmp_path, scores=scores, epochs=5, early_stopping=2)
    assert (done.progress.step, done.progress.best, done.progress.best_epoch) == (8, 3.0, 2.0)
    best, last = load(tmp_path, "best"), load(tmp_path)
    assert float(best["objective"]["w"]) == done.objective.values[4][0]
    assert float(last["objective"]["w"]) == done.objective.values[8][0] != float(best["objective"]["w"])
    assert best["epoch"] == 2.0
    assert TrainState(**last["progress"]).finished


@pytest.mark.parametrize(("every", "expected"), [(1, [2, 4, 6, 8, 9]), (3, [6, 9])])
def test_validations_come_when_due(every: int, expected: list[int], tmp_path: Path) -> None:
    done = toy(tmp_path, scores=[0.0] * 5, epochs=9, max_steps=9, validate_every=every)
    assert [r["step"] for r in done.records if "val/elbo" in r] == expected
    assert done.progress.best_epoch == expected[0] / 2


def test_validation_that_is_not_finite_stops(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="val/elbo is not finite after step 4"):
        toy(tmp_path, scores=[1.0, math.nan])


def test_without_validation_the_last_is_the_best(tmp_path: Path) -> None:
    done = toy(tmp_path)
    assert_same_bits(load(tmp_path, "best")["objective"], done.objective.state_dict())
    assert done.progress.best is None


def test_moments_of_another_size_are_refused(tmp_path: Path) -> None:
    """Otherwise Adam's kernel raises an error that nobody understands."""
    made = toy(tmp_path)
    state = load(tmp_path)
    state["optimisers"]["toy"]["state"][0]["exp_avg"] = torch.zeros(2)
    optimisers = make_optimisers(made.objective.phases, TrainSettings(3, 2, 128, 0.01))
    with pytest.raises(
        InputError, match="does not fit this run's model: the optimiser's moments of phase toy do not have the"
    ):
        restore(made.objective, optimisers, state, torch.device("cpu"))


@pytest.mark.parametrize("key", ["step", "exp_avg", "exp_avg_sq"])
def test_moments_that_are_missing_are_refused(tmp_path: Path, key: str) -> None:
    made = toy(tmp_path)
    state = load(tmp_path)
    del state["optimisers"]["toy"]["state"][0][key]
    optimisers = make_optimisers(made.objective.phases, TrainSettings(3, 2, 128, 0.01))
    with pytest.raises(
        InputError, match="does not fit this run's model: the optimiser's moments of phase toy are incomplete"
    ):
        restore(made.objective, optimisers, state, torch.device("cpu"))


@pytest.mark.parametrize("kind", [torch.complex64, torch.int64])
def test_numbers_of_another_kind_are_refused(tmp_path: Path, kind: torch.dtype) -> None:
    """torch would convert them to floating point, with or without a warning."""
    made = toy(tmp_path)
    for where in ("objective", "moments"):
        state = load(tmp_path)
        tensors = state["objective"] if where == "objective" else state["optimisers"]["toy"]["state"][0]
        name = next(iter(tensors)) if where == "objective" else "exp_avg"
        tensors[name] = tensors[name].to(kind)
        optimisers = make_optimisers(made.objective.phases, TrainSettings(3, 2, 128, 0.01))
        with pytest.raises(InputError, match=r"fit this run's model: .*(another kind of dtype|not floating point)"):
            restore(made.objective, optimisers, state, torch.device("cpu"))


@pytest.mark.parametrize(
    ("field", "value"),
    [(name, torch.tensor(1.0)) for name in ("best", "step", "seconds", "best_epoch", "count")]
    + [("step", -1), ("count", -64), ("stale", 0.5), ("seconds", math.inf), ("timed_seconds", -1.0), ("seconds", None)],
)
def test_a_progress_that_cannot_be_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    """Arithmetic with a tensor works until it is logged; a count of -64 becomes 0 after one batch of 64."""
    made = toy(tmp_path)
    state = load(tmp_path)
    state["metrics" if field == "count" else "progress"][field] = value
    optimisers = make_optimisers(made.objective.phases, TrainSettings(3, 2, 128, 0.01))
    with pytest.raises(InputError, match=rf"does not fit this run's model: \w+\.{field} is not a .*"):
        restore(made.objective, optimisers, state, torch.device("cpu"))


def test_a_progress_without_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"progress\.step is not a count"):
        TrainState.from_checkpoint({"best": None})
    assert TrainState.from_checkpoint({"step": 3}).step == 3
