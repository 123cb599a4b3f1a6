"""The training loop: resuming gives the same bits, nothing bad reaches the parameters, every image counts once."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from vaerun.cli.main import config_folder
from vaerun.data.dataset import Batch, Split
from vaerun.data.transforms import Transform
from vaerun.errors import InputError, Interrupted, RunError
from vaerun.evaluation import Validator
from vaerun.objectives import Phase, Variational
from vaerun.randomness import permutation
from vaerun.run.execute import execute
from vaerun.settings import check
from vaerun.training import Progress, TrainSettings, train
from vaerun.training.checkpoint import Store
from vaerun.training.log import Log
from vaerun.training.schedule import factor
from vaerun.training.signals import Stop

# 250 images in batches of 64: epochs of 4 steps whose last batch has 58; 20 steps are 5 epochs.
TINY = """data.train_images=250 trainer.batch_size=64 trainer.max_steps=20 trainer.log_every=3 trainer.device=cpu
model.encoder.hidden=[8] model.decoder.hidden=[8] model.latent_dim=2 model.inference.steps=2 evaluation.samples=20
evaluation.images=20 evaluation.pictures=0"""
MODELS = ["vae", "vae_hf", "sa_vae", "vlae", "cvae"]


@pytest.fixture(autouse=True)
def single_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for tensors this small, threads only wait for each other
    yield
    torch.set_num_threads(threads)


def run(folder: Path, *overrides: str, model: str = "vae") -> dict[str, Any]:
    words = [w for w in TINY.split() if model not in ("vae", "cvae") or "inference" not in w]
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        settings = check(hydra.compose("config", [f"model={model}", *words, *overrides]))
    return execute(settings, folder, list(overrides))


def load(folder: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.pt", weights_only=True)


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(state, dict | list):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {k: v for key, item in items for k, v in flat(item, f"{prefix}/{key}").items()}
    return {prefix: state}


def assert_same_bits(one: Any, other: Any) -> None:
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key], key


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("last", "best"):
        states = [load(folder, name) for folder in (one, other)]
        for state in states:
            for timing in ("seconds", "timed_steps"):
                state.get("progress", {}).pop(timing, None)
        assert_same_bits(*states)
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    events = EventAccumulator(str(other), size_guidance={"scalars": 0}).Reload()
    lines = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    for tag in ("train/elbo", "val/elbo", "test/elbo"):  # each step stands once in TensorBoard too
        assert [e.step for e in events.Scalars(tag)] == [line["step"] for line in lines if tag in line]
    records = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    assert records[0]["status"] == records[1]["status"] == "ok"
    assert records[0]["metrics"] == records[1]["metrics"]
    assert records[0]["protocol"] == records[1]["protocol"]


def signal_at(monkeypatch: pytest.MonkeyPatch, step: int, signum: int = signal.SIGTERM) -> None:
    """A real signal comes while the given step (from 1) is made, once."""
    original, sent = Variational.after_step, []

    def after_step(self: Variational, done: int) -> None:
        original(self, done)
        if done + 1 == step and not sent:
            sent.append(step)
            signal.raise_signal(signum)

    monkeypatch.setattr(Variational, "after_step", after_step)


def signal_after_validation(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A real signal comes when the given validation (from 1) has been made, once."""
    original, begun = Validator.__call__, []

    def call(self: Validator) -> dict[str, float]:
        found = original(self)
        begun.append(1)
        if len(begun) == number:
            signal.raise_signal(signal.SIGTERM)
        return found

    monkeypatch.setattr(Validator, "__call__", call)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The uninterrupted run of each model."""
    made: dict[str, Path] = {}

    def of(model: str) -> Path:
        if model not in made:
            made[model] = tmp_path_factory.mktemp(model)
            run(made[model], model=model)
        return made[model]

    return of


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("where", ["in an epoch", "in the validation", "after the validation"])
def test_resumed_is_uninterrupted(
    where: str, model: str, whole: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = whole(model)
    with monkeypatch.context() as patch:
        if where == "after the validation":
            signal_after_validation(patch, 3)
        else:  # the request of the epoch's last step is answered between the batches of its validation
            signal_at(patch, 10 if where == "in an epoch" else 12)
        with pytest.raises(Interrupted) as stopped:
            run(tmp_path, model=model)
    assert stopped.value.exit_code == 75
    state, record = load(tmp_path), json.loads((tmp_path / "result.json").read_text())
    assert record["status"] == "interrupted"
    assert "SIGTERM" in record["error"]
    assert state["progress"]["step"] == (10 if where == "in an epoch" else 12)
    assert state["progress"]["validation_due"] == (where == "in the validation")
    run(tmp_path, model=model)
    assert_same_run(reference, tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_damaged_checkpoint(
    damage: str,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def spoil(name: str) -> None:
        path = tmp_path / "checkpoints" / name
        content = bytearray(path.read_bytes())
        if damage == "flipped":
            content[content.index(load(tmp_path)["objective"]["model.mean"].numpy().tobytes()) + 9] ^= 1
        path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "flipped": content}[damage])

    with monkeypatch.context() as patch:
        signal_at(patch, 9)  # a step with a record, which will come again
        with pytest.raises(Interrupted):
            run(tmp_path, "trainer.checkpoint_seconds=0")
    assert load(tmp_path, "previous")["progress"]["step"] == 8
    kept = {p: p.read_bytes() for p in (tmp_path / "checkpoints").iterdir()}
    spoil("last.pt")
    capsys.readouterr()
    run(tmp_path)
    warning = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warning) == 1
    assert "last.pt" in warning[0]
    assert "going on from previous.pt" in warning[0]
    assert_same_run(whole("vae"), tmp_path)

    # Neither is good: refused, and nothing is changed.
    for path, content in kept.items():
        path.write_bytes(content)
    spoil("previous.pt")
    spoil("last.pt")
    record = json.loads((tmp_path / "result.json").read_text()) | {"status": "interrupted"}
    (tmp_path / "result.json").write_text(json.dumps(record))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=r"no good checkpoint.*last\.pt.*previous\.pt"):
        run(tmp_path)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


class _BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * math.inf


@pytest.mark.parametrize("term", ["kl", "reconstruction", "gradient"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_stops_before_the_update(
    bad: float, term: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = Variational.loss, SimpleNamespace(before={}, objective=None)

    def loss(self: Variational, phase: str, step: int, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        value, metrics = original(self, phase, step, batch)
        if step == 6:
            seen.objective = self
            seen.before = {k: v.clone() for k, v in self.state_dict().items()}
            if term == "gradient":
                return _BadGradient.apply(value), metrics
            one = torch.arange(len(value)) == 3  # a single image is enough
            metrics = metrics | {term: torch.where(one, bad, metrics[term])}
            value = torch.where(one, bad, value)
        return value, metrics

    monkeypatch.setattr(Variational, "loss", loss)
    with pytest.raises(RunError, match=rf"step 7: the term '{term}' is not finite; likely cause: .*learning_rate"):
        run(tmp_path, "trainer.clip_norm=1" if term == "gradient" else "trainer.clip_norm=null")
    assert_same_bits(seen.before, seen.objective.state_dict())
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["status"] == "failed"
    assert "step 7" in record["error"]


def test_failed_before_a_checkpoint_starts_again(
    whole: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Variational, step: int) -> None:
        if step == 7:
            raise RunError("for the test")

    with monkeypatch.context() as patch:
        patch.setattr(Variational, "after_step", fail)
        with pytest.raises(RunError):
            run(tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    run(tmp_path)
    assert_same_run(whole("vae"), tmp_path)


def test_finished_run_is_extended(whole: Callable[[str], Path], tmp_path: Path) -> None:
    run(tmp_path / "short", "trainer.max_steps=12")
    before = {p: p.read_bytes() for p in (tmp_path / "short").rglob("*") if p.is_file()}
    record = run(tmp_path / "longer", f"trainer.resume={tmp_path / 'short'}")
    assert record["timing"]["train_steps"] == 20
    for part in ("objective", "optimisers"):
        assert_same_bits(load(tmp_path / "longer")[part], load(whole("vae"))[part])
    assert_same_bits(load(tmp_path / "longer", "best")["objective"], load(whole("vae"), "best")["objective"])
    assert before == {p: p.read_bytes() for p in (tmp_path / "short").rglob("*") if p.is_file()}


def test_best_of_the_named_run_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # After the checkpoint no validation is better: the best parameters are still those of the run gone on from.
    scores = iter([-5.0, -4.0, -9.0, -9.0, -9.0])
    monkeypatch.setattr(Validator, "__call__", lambda self: {"val/elbo": next(scores)})
    with monkeypatch.context() as patch:
        signal_at(patch, 10)
        with pytest.raises(Interrupted):
            run(tmp_path / "first")
    record = run(tmp_path / "second", f"trainer.resume={tmp_path / 'first'}")
    assert (record["metrics"]["val/elbo"], record["protocol"]["selected_epoch"]) == (-4.0, 2.0)
    best = [load(tmp_path / name, "best")["objective"] for name in ("first", "second")]
    assert_same_bits(*best)


def test_records_pictures_and_checkpoints_change_no_bit(
    whole: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)  # the progress bar
    run(tmp_path, "trainer.log_every=1", "trainer.checkpoint_seconds=0", "evaluation.pictures=1", model="vlae")
    for name, part in (("last", "objective"), ("last", "optimisers"), ("best", "objective")):
        assert_same_bits(load(tmp_path, name)[part], load(whole("vlae"), name)[part])


def test_test_images_reach_nothing_but_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAERUN_CACHE", str(tmp_path / "cache"))
    random = np.random.RandomState(0)
    images = {"train_images": random.randint(0, 256, (300, 1, 4, 4)), "test_images": random.randint(0, 256, (40, 4, 4))}
    results = []
    for i in range(2):
        file = tmp_path / f"{i}.npz"
        np.savez(file, **{k: v.astype(np.uint8) for k, v in images.items()})
        words = ["data=npz", f"data.path={file}", "data.validation=50", "trainer.early_stopping=2"]
        results.append(run(tmp_path / str(i), *words)["metrics"])
        images["test_images"] = 255 - images["test_images"] // 2
    for name in ("last", "best"):
        assert_same_bits(load(tmp_path / "0", name)["objective"], load(tmp_path / "1", name)["objective"])
    assert results[0]["val/elbo"] == results[1]["val/elbo"]
    assert results[0]["test/elbo"] != results[1]["test/elbo"]


# --- the loop alone, on an objective whose gradients are known ---


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
    """Train a Toy; gives it, its progress and its records."""
    images = torch.randint(1, 256, (150, 1, 2, 2), dtype=torch.uint8) if images is None else images
    split = Split("train", images, None, 0, Transform(), False)
    options = {"seed": 3, "epochs": 2, "batch_size": 128, "learning_rate": 0.01, "log_every": 1000} | settings
    log = Log(folder, position=None, start_step=0, total_steps=0, images_per_step=1, show=False)
    objective, store, given = Toy(), Store(folder / "checkpoints", "f", print), iter(scores or [])
    validate = None if scores is None else lambda: {"val/elbo": next(given)}
    try:
        rest = {"validate": validate, "log": log, "store": store, "stop": Stop(), "resume": resume}
        progress = train(objective, split, TrainSettings(**options), **rest)
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
    expected = [[float(done.x[r].mean())] * 2 for r in rows]  # the mean is over the batch's own images
    np.testing.assert_allclose(done.objective.gradients, expected, rtol=1e-6)
    # What is reported is a mean over images, not of batch means.
    mean, of_means = float(done.x.mean()), float(np.mean(expected))
    assert abs(mean - of_means) > 1e-3
    assert done.records[-1]["train/pixel"] == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "burda"])
def test_rates_reach_the_parameters(schedule: str, tmp_path: Path) -> None:
    # A constant gradient makes each step of Adam as long as the rate.
    images = torch.full((8, 1, 1, 1), 255, dtype=torch.uint8)
    rates = {"learning_rate": 0.01, "variance_learning_rate": 0.03}
    done = toy(tmp_path, images, schedule=schedule, epochs=5, batch_size=4, log_every=1, **rates)
    steps = -np.diff(np.array(done.objective.values), axis=0)
    scales = [factor(schedule, step // 2, step / 10) for step in range(10)]
    np.testing.assert_allclose(steps, np.outer(scales, list(rates.values())), rtol=1e-3, atol=1e-8)
    assert [r["train/learning_rate"] for r in done.records] == pytest.approx([0.01 * s for s in scales])


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
    burda = [factor("burda", epoch, 0.0) for epoch in range(3280)]
    exponents = np.rint([-7 * math.log10(f) for f in burda]).astype(int)
    np.testing.assert_allclose(burda, 10.0 ** (-exponents / 7), rtol=1e-12)
    assert exponents.tolist() == [i for i in range(8) for _ in range(3**i)]
    assert factor("burda", 10_000, 1.0) == burda[-1]
    assert [factor("cosine", 0, p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert [factor("step", 0, p) for p in (0, 0.49, 0.5, 0.74, 0.75, 1)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert factor("constant", 99, 0.9) == 1
    with pytest.raises(InputError, match="constant, cosine, step, burda"):
        factor("linear", 0, 0.0)


def test_clipping_is_of_the_whole_norm(tmp_path: Path) -> None:
    images = torch.full((8, 1, 1, 1), 255, dtype=torch.uint8)
    free, far, clipped = (
        np.array(toy(tmp_path, images, batch_size=4, clip_norm=norm).objective.gradients) for norm in (None, 2.0, 0.1)
    )
    np.testing.assert_array_equal(free, 1.0)
    np.testing.assert_array_equal(far, free)
    np.testing.assert_allclose(clipped, 0.1 / math.sqrt(2), rtol=1e-4)


def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    scores = [1.0, 3.0, 2.0, 3.0, 9.0]  # as good as the best is no improvement
    done = toy(tmp_path, scores=scores, epochs=5, early_stopping=2)
    assert (done.progress.step, done.progress.best, done.progress.best_epoch) == (8, 3.0, 2.0)
    best, last = load(tmp_path, "best"), load(tmp_path)
    assert float(best["objective"]["w"]) == done.objective.values[4][0]
    assert float(last["objective"]["w"]) == done.objective.values[8][0] != float(best["objective"]["w"])
    assert best["epoch"] == 2.0
    assert Progress(**last["progress"]).finished


@pytest.mark.parametrize(("every", "expected"), [(1, [2, 4, 6, 8, 9]), (3, [6, 9])])
def test_validations_come_when_due(every: int, expected: list[int], tmp_path: Path) -> None:
    done = toy(tmp_path, scores=[0.0] * 5, epochs=9, max_steps=9, validate_every=every)
    assert [r["step"] for r in done.records if "val/elbo" in r] == expected
    assert done.progress.best_epoch == expected[0] / 2


def test_validation_that_is_not_finite_stops(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="validation ELBO is not finite after step 4"):
        toy(tmp_path, scores=[1.0, math.nan])


def test_without_validation_the_last_is_the_best(tmp_path: Path) -> None:
    done = toy(tmp_path)
    assert_same_bits(load(tmp_path, "best")["objective"], done.objective.state_dict())
    assert done.progress.best is None
