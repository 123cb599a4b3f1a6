"""Runs in training: resuming gives the same bits, and non-finite losses never reach the parameters."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from support.runs.commands import FAST_AMIS, assert_same_bits, lasting, load
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from vaerun.config.plugins import builtin_config_dir
from vaerun.config.settings import to_settings
from vaerun.data.dataset import Batch
from vaerun.errors import InputError, Interrupted, RunError
from vaerun.evaluation import Validator
from vaerun.objectives import Variational
from vaerun.run.experiment import Experiment

# 250 images in batches of 64: epochs of 4 steps whose last batch has 58; 20 steps are 5 epochs.
TINY = """data.train_images=250 trainer.batch_size=64 trainer.max_steps=20 trainer.log_every=3 trainer.device=cpu
model.encoder.hidden=[8] model.decoder.hidden=[8] model.latent_dim=2 model.inference.steps=2 evaluation.samples=20
evaluation.images=20 evaluation.pictures=0"""
TINY += " " + " ".join(FAST_AMIS)
pytestmark = pytest.mark.usefixtures("single_precision")
MODELS = ["vae", "vae_hf", "sa_vae", "vlae", "cvae"]


def run(folder: Path, *overrides: str, model: str = "vae") -> dict[str, Any]:
    words = [w for w in TINY.split() if model not in ("vae", "cvae") or "inference" not in w]
    with hydra.initialize_config_dir(str(builtin_config_dir()), version_base="1.3"):
        settings = to_settings(hydra.compose("config", [f"model={model}", *words, *overrides]))
    return Experiment(settings, folder, list(overrides)).run()


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("last", "best"):
        assert_same_bits(lasting(one, name), lasting(other, name))
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    events = EventAccumulator(str(other), size_guidance={"scalars": 0}).Reload()
    lines = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    for tag in ("train/elbo", "val/elbo", "test/elbo"):  # each step appears once in TensorBoard too
        assert [e.step for e in events.Scalars(tag)] == [line["step"] for line in lines if tag in line]
    records = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    assert records[0]["status"] == records[1]["status"] == "ok"
    assert records[0]["metrics"] == records[1]["metrics"]
    assert records[0]["protocol"] == records[1]["protocol"]


def signal_at(monkeypatch: pytest.MonkeyPatch, step: int, signum: int = signal.SIGTERM) -> None:
    """Raise a real signal once, during the given step (from 1)."""
    original, sent = Variational.after_step, []

    def after_step(self: Variational, done: int) -> None:
        original(self, done)
        if done + 1 == step and not sent:
            sent.append(step)
            signal.raise_signal(signum)

    monkeypatch.setattr(Variational, "after_step", after_step)


def signal_after_validation(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Raise a real signal once, after the given validation (from 1)."""
    original, calls = Validator.__call__, []

    def call(self: Validator) -> dict[str, float]:
        metrics = original(self)
        calls.append(1)
        if len(calls) == number:
            signal.raise_signal(signal.SIGTERM)
        return metrics

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
        else:  # a request after the epoch's last step is heeded between the batches of the validation
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
    def corrupt(name: str) -> None:
        path = tmp_path / "checkpoints" / name
        content = bytearray(path.read_bytes())
        if damage == "flipped":
            content[content.index(load(tmp_path)["objective"]["model.mean"].numpy().tobytes()) + 9] ^= 1
        path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "flipped": content}[damage])

    with monkeypatch.context() as patch:
        signal_at(patch, 9)  # a step whose metrics are logged, and will be again
        with pytest.raises(Interrupted):
            run(tmp_path, "trainer.checkpoint_seconds=0")
    assert load(tmp_path, "previous")["progress"]["step"] == 8
    checkpoints = {p: p.read_bytes() for p in (tmp_path / "checkpoints").iterdir()}
    corrupt("last.pt")
    capsys.readouterr()
    run(tmp_path)
    warning = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warning) == 1
    assert "last.pt" in warning[0]
    assert "resuming from previous.pt" in warning[0]
    assert_same_run(whole("vae"), tmp_path)

    # Neither is valid: rejected, and nothing is changed.
    for path, content in checkpoints.items():
        path.write_bytes(content)
    corrupt("previous.pt")
    corrupt("last.pt")
    record = json.loads((tmp_path / "result.json").read_text()) | {"status": "interrupted"}
    (tmp_path / "result.json").write_text(json.dumps(record))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=r"no valid checkpoint.*last\.pt.*previous\.pt"):
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
            one = torch.arange(len(value)) == 3  # a single image suffices
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


def test_named_run_is_judged_on_this_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Selection starts anew: the initial parameters are validated, for the other run's best may be on other data."""
    with monkeypatch.context() as patch:
        patch.setattr(Validator, "__call__", lambda self: {"val/elbo": 1000.0})
        signal_at(patch, 10)
        with pytest.raises(Interrupted):
            run(tmp_path / "first")
    scores = iter([-5.0, -9.0, -9.0, -9.0])
    monkeypatch.setattr(Validator, "__call__", lambda self: {"val/elbo": next(scores)})
    file = tmp_path / "first" / "checkpoints" / "last.pt"
    record = run(tmp_path / "second", f"trainer.resume={file}", "data.validation=100")
    assert (record["metrics"]["val/elbo"], record["protocol"]["selected_epoch"]) == (-5.0, 2.5)
    assert_same_bits(load(tmp_path / "first")["objective"], load(tmp_path / "second", "best")["objective"])
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert record["protocol"]["started_from"] == {"path": str(file), "sha256": digest}


def test_begun_from_a_named_run_goes_on_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Re-running the command resumes from the run's own checkpoint; the initial one may be gone."""
    run(tmp_path / "first", "trainer.max_steps=10")
    named = f"trainer.resume={tmp_path / 'first'}"
    whole = run(tmp_path / "whole", named)
    with monkeypatch.context() as patch:
        signal_at(patch, 14)
        with pytest.raises(Interrupted):
            run(tmp_path / "second", named)
    (tmp_path / "first").rename(tmp_path / "gone")
    again = run(tmp_path / "second", named)
    assert again["metrics"] == whole["metrics"]
    assert again["protocol"] == whole["protocol"]  # including started_from
    assert run(tmp_path / "second", named) == again  # finished: printed, not repeated


def test_named_run_without_steps_left_is_refused(whole: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has done 20 steps and this run has 12"):
        run(tmp_path / "second", f"trainer.resume={whole('vae')}", "trainer.max_steps=12")
    assert not (tmp_path / "second").exists()


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
