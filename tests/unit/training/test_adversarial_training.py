"""Adversarial training: phases with repeats, learning rates and betas of their own; resuming gives the same bits."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from support.models.adversarial import everything, fit, make_model, make_split, parameters
from support.runs.commands import assert_same_bits, lasting, load
from torch import Tensor, nn

from vaerun.config.plugins import builtin_config_dir
from vaerun.config.settings import to_settings
from vaerun.data.dataset import Batch
from vaerun.errors import InputError, Interrupted, RunError
from vaerun.estimators import NonSaturating
from vaerun.models import Codes
from vaerun.objectives import Adversarial, Phase
from vaerun.randomness import permutation
from vaerun.run.experiment import Experiment
from vaerun.signals import ShutdownSignal
from vaerun.training import TrainSettings, make_optimisers, restore
from vaerun.training.finite_guard import FiniteGuard
from vaerun.training.step import set_learning_rates, update

pytestmark = pytest.mark.usefixtures("single_precision")

# Together they cover batch norm, moving average, spectral norm, k > 1, R1, codes, labels, smoothing.
RESUMED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "infogan": (
        {"kind": "conv", "codes": Codes([3], 1), "average": True, "spectral_norm": True, "batch_norm": False},
        {"discriminator_steps": 2, "r1": 1.0},
    ),
    "conditional dcgan": (
        {"kind": "conv", "classes": 3, "average": True},
        {"discriminator_steps": 2, "winning_steps": 3},
    ),
    "gan": ({"classes": 3}, {"discriminator_steps": 3, "r1": 0.5}),
}


class Watched(Adversarial):
    """Keeps the arguments of each loss, and the generator after each step."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls: list[tuple[str, int, list[int], list[int]]] = []
        self.generators: list[dict[str, Tensor]] = []
        self.signal_after: tuple[int, ShutdownSignal] | None = None

    def loss(self, phase: str, step: int, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        labels = [] if batch.labels is None else batch.labels.tolist()
        self.calls.append((phase, step, batch.rows.tolist(), labels))
        return super().loss(phase, step, batch)

    def after_step(self, step: int) -> None:
        super().after_step(step)
        self.generators.append(everything(self.model.generator))
        if self.signal_after is not None and step + 1 == self.signal_after[0]:
            self.signal_after[1].signum = signal.SIGTERM


def make(member: str, seed: int = 0, **more: Any) -> Watched:
    torch.manual_seed(seed)
    model, options = RESUMED[member]
    return Watched(make_model(**model), NonSaturating(label_smoothing=0.1), **(options | more))


@pytest.mark.parametrize("member", RESUMED)
@pytest.mark.parametrize("at", [1, 5, 6])
def test_resumed_is_uninterrupted(at: int, member: str, tmp_path: Path) -> None:
    """Interrupted within an epoch or at its end; the resumed run is initialised differently, which must not matter."""
    split = make_split(classes=3)
    options = {"split": split, "schedule": "cosine", "clip_norm": 50.0, "discriminator_betas": (0.4, 0.9)}
    fit(tmp_path / "whole", make(member), **options)
    stop = ShutdownSignal()
    first = make(member)
    first.signal_after = at, stop
    with pytest.raises(Interrupted):
        fit(tmp_path / "parts", first, stop=stop, **options)
    assert load(tmp_path / "parts")["progress"]["step"] == at
    assert not (tmp_path / "parts" / "checkpoints" / "best.pt").exists()
    second = make(member, seed=1)
    fit(tmp_path / "parts", second, resume=True, **options)
    assert {step for _, step, _, _ in second.calls} == set(range(at, 12))
    for name in ("last", "best"):
        assert_same_bits(lasting(tmp_path / "whole", name), lasting(tmp_path / "parts", name))
    metrics = [(tmp_path / folder / "metrics.jsonl").read_text() for folder in ("whole", "parts")]
    assert metrics[0] == metrics[1]


TINY = """model.generator.width=2 model.discriminator.width=2 model.latent_dim=3 data.train_images=150
trainer.batch_size=64 trainer.max_steps=8 trainer.log_every=3 trainer.device=cpu estimator.discriminator_steps=2
evaluation.quality=false evaluation.pictures=0"""


def test_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for a complete run: batches of 64, 64 and 22, a real signal at the fifth step."""

    def run(folder: Path) -> dict[str, Any]:
        with hydra.initialize_config_dir(str(builtin_config_dir()), version_base="1.3"):
            settings = to_settings(hydra.compose("config", ["model=infogan", *TINY.split()]))
        return Experiment(settings, folder, []).run()

    whole = run(tmp_path / "whole")
    original = Adversarial.after_step

    def after_step(self: Adversarial, step: int) -> None:
        original(self, step)
        if step == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Adversarial, "after_step", after_step)
        with pytest.raises(Interrupted):
            run(tmp_path / "parts")
    assert load(tmp_path / "parts")["progress"]["step"] == 5
    parts = run(tmp_path / "parts")
    for name, key in (("last", "objective"), ("last", "optimisers"), ("best", "objective")):
        assert_same_bits(load(tmp_path / "whole", name)[key], load(tmp_path / "parts", name)[key])
    lines = [(tmp_path / folder / "metrics.jsonl").read_text() for folder in ("whole", "parts")]
    assert lines[0] == lines[1]
    assert {"train/generator_loss", "train/mutual_information"} <= json.loads(lines[0].splitlines()[0]).keys()
    assert whole["metrics"] == parts["metrics"]
    assert whole["protocol"] == parts["protocol"]


@pytest.mark.parametrize("k", [1, 3])
def test_k_updates_each_with_images_of_its_own(k: int, tmp_path: Path) -> None:
    """Adam counts the updates; each repeat visits all images of an epoch, in an order of its own."""
    objective = make("gan", discriminator_steps=k)
    split = make_split(classes=3)
    done = fit(tmp_path, objective, split=split, epochs=2)
    assert done.progress.step == 6
    optimisers = load(tmp_path)["optimisers"]
    for name, updates in (("discriminator", 6 * k), ("generator", 6)):
        steps = [int(state["step"]) for state in optimisers[name]["state"].values()]
        assert steps == [updates] * len(list(getattr(objective.model, name).parameters()))
    assert [(phase, step) for phase, step, _, _ in objective.calls] == [
        (phase, step) for step in range(6) for phase in ["discriminator"] * k + ["generator"]
    ]
    for epoch in range(2):
        for repeat in range(k):
            rows = [r for p, s, r, _ in objective.calls if p == "discriminator" and s // 3 == epoch]
            order = [row for batch in rows[repeat::k] for row in batch]
            position = ("epoch", epoch) if repeat == 0 else ("epoch", epoch, "repeat", repeat)
            assert order == permutation(22, 3, *position).tolist()
            assert sorted(order) == list(range(22))
    for _, step, rows, labels in objective.calls:
        assert len(rows) == (6 if step % 3 == 2 else 8)
        assert labels == split.labels[rows].tolist()
    first = [tuple(rows) for p, s, rows, _ in objective.calls if p == "discriminator" and s == 0]
    assert len(set(first)) == k
    assert [rows for p, s, rows, _ in objective.calls if p == "generator" and s == 0] == [list(first[0])]


def test_metrics_are_means_over_images_and_repeats(tmp_path: Path) -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))
            self.phases = {"a": Phase({"discriminator": [self.w]}, 2), "b": Phase({"generator": [self.w]})}
            self.seen: list[float] = []

        def loss(self, phase: str, step: int, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            self.seen += batch.rows.tolist() if phase == "a" else []
            return self.w.sum() * batch.rows.float(), {phase: batch.rows.float()}

        after_step, diagnostics = Adversarial.after_step, Adversarial.diagnostics

    objective = Rows()
    objective.after_step = lambda step: None  # type: ignore[method-assign]
    objective.diagnostics = lambda: Adversarial.diagnostics(make("gan"))  # type: ignore[method-assign]
    (record,) = fit(tmp_path, objective, epochs=1, max_steps=2, log_every=2).records
    assert len(objective.seen) == 2 * 16
    assert record["train/a"] == pytest.approx(sum(objective.seen) / 32)
    assert record["train/b"] == pytest.approx(permutation(22, 3, "epoch", 0)[:16].double().mean().item())
    # The gradient's norm is sqrt(2) times the batch's mean row, averaged over updates.
    assert record["train/gradient_norm/a"] == pytest.approx(math.sqrt(2) * record["train/a"])


def test_average_follows_the_trained_generator(tmp_path: Path) -> None:
    objective = make("infogan")
    average = everything(objective.model.generator)
    fit(tmp_path, objective)
    assert len(objective.generators) == 12
    for t, now in enumerate(objective.generators):
        decay = min(0.999, (1 + t) / (10 + t))
        average = {k: decay * v + (1 - decay) * now[k] if v.is_floating_point() else now[k] for k, v in average.items()}
    for name, value in objective.model.average.state_dict().items():
        torch.testing.assert_close(value, average[name])
    best = load(tmp_path, "best")["objective"]
    assert_same_bits({k: v for k, v in best.items() if k in objective.state_dict()}, everything(objective))


RATES = {"learning_rate": 0.01, "discriminator_learning_rate": 0.03, "variance_learning_rate": 0.002}
BETAS = {"betas": (0.5, 0.95), "discriminator_betas": (0.2, 0.8)}


@pytest.mark.parametrize("own", [True, False])
def test_each_network_has_rate_and_betas_of_its_own(own: bool) -> None:
    """Against Adam (Kingma & Ba 2015, algorithm 1) written out, on known gradients."""
    options = (RATES | BETAS) if own else {"learning_rate": 0.01, "betas": (0.5, 0.95)}
    settings = TrainSettings(seed=0, epochs=1, batch_size=1, **options)
    expected = {
        "generator": (0.01, 0.5, 0.95),
        "discriminator": (0.03, 0.2, 0.8) if own else (0.01, 0.5, 0.95),
        "variance": (0.002 if own else 0.01, 0.5, 0.95),
        "network": (0.01, 0.5, 0.95),
    }
    for group, (rate, beta1, beta2) in expected.items():
        p = nn.Parameter(torch.zeros((), dtype=torch.float64))
        optimiser = make_optimisers({"phase": Phase({group: [p]})}, settings)["phase"]
        value = m = v = 0.0
        for t, g in enumerate((0.7, -0.2, 1.5), 1):
            set_learning_rates(optimiser, 0.5)  # as a schedule does
            update(optimiser, g * p, {}, clip_norm=None, guard=FiniteGuard(torch.device("cpu")), step=t)
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
            value -= 0.5 * rate * (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + 1e-8)
            assert p.item() == pytest.approx(value, rel=1e-9)


def test_settings_rates_and_betas_count_after_a_resume(tmp_path: Path) -> None:
    fit(tmp_path, make("gan"), split=make_split(classes=3))
    state = load(tmp_path)
    objective = make("gan", seed=1)
    settings = TrainSettings(seed=0, epochs=1, batch_size=1, **RATES, **BETAS)
    optimisers = make_optimisers(objective.phases, settings)
    progress, _, _ = restore(objective, optimisers, state, torch.device("cpu"))
    assert progress.step == 12
    for name, rate, betas in (("generator", 0.01, (0.5, 0.95)), ("discriminator", 0.03, (0.2, 0.8))):
        (group,) = optimisers[name].param_groups
        assert (group["base_lr"], group["betas"]) == (rate, betas)
        saved = state["optimisers"][name]["state"]
        for i, p in enumerate(group["params"]):
            assert torch.equal(optimisers[name].state[p]["exp_avg"], saved[i]["exp_avg"])
    with pytest.raises(InputError, match="does not fit this run's model"):
        restore(make("infogan"), optimisers, state, torch.device("cpu"))


class NonFiniteLoss(NonSaturating):
    """A loss that is not finite for one image, from the given call of a phase on."""

    def __init__(self, phase: str, call: int, value: float) -> None:
        super().__init__()
        self.phase, self.calls_left, self.value = phase, call, value
        self.objective: Adversarial | None = None
        self.before: dict[str, Tensor] = {}

    def _replace(self, phase: str, loss: Tensor) -> Tensor:
        self.calls_left -= phase == self.phase
        if phase != self.phase or self.calls_left:
            return loss
        self.before = parameters(self.objective)
        return torch.where(torch.arange(len(loss)) == 3, self.value, loss)

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return self._replace("discriminator", super().discriminator(real, fake))

    def generator(self, fake: Tensor) -> Tensor:
        return self._replace("generator", super().generator(fake))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("phase", ["discriminator", "generator"])
def test_non_finite_loss_stops_before_the_update(phase: str, value: float, tmp_path: Path) -> None:
    call = 10 if phase == "discriminator" else 5  # the second update of the fifth step, or its only one
    bad = NonFiniteLoss(phase, call, value)
    bad.objective = objective = Adversarial(make_model("conv", average=True), bad, discriminator_steps=2)
    with pytest.raises(
        RunError, match=rf"step 5: the term '{phase}_loss' is not finite; likely cause: .*learning_rate"
    ):
        fit(tmp_path, objective)
    assert_same_bits(parameters(objective), bad.before)
    assert not (tmp_path / "checkpoints").exists()
