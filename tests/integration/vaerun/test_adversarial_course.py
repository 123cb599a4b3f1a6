"""The course of an adversarial run: selection of parameters, resuming, warnings."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs.adversarial_runs import (
    GAN,
    INFOGAN,
    RESUMED,
    SELECT,
    WON,
    Command,
    FinishedRun,
    environment,
    opened,
    pixels,
    tiles,
)
from support.runs.commands import assert_same_bits, lasting, load, records
from support.runs.evaluating import result

from vaerun.evaluation.samples import sample_validation
from vaerun.evaluation.samples.sample_quality import diversity, frechet_distance
from vaerun.evaluation.samples.sample_validation import SampleValidator, generate_images, real_images
from vaerun.objectives import Adversarial
from vaerun.run.evaluate.classifier import dataset_classifier

pytestmark = pytest.mark.usefixtures("command_environment")


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory)


# --- which parameters are evaluated ---


def test_selection_by_the_smallest_distance(here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second epoch is the best; two worse ones end the training."""
    real_distance, factors = sample_validation.frechet_distance, iter([2.0, 0.01, 3.0, 2.0, 0.001, 0.001])
    monkeypatch.setattr(sample_validation, "frechet_distance", lambda a, b: next(factors) * real_distance(a, b))
    words = [*GAN, *SELECT, "trainer.early_stopping=2", "trainer.learning_rate=0.01", "trainer.max_steps=24"]
    code, out, err = here(*words, f"output_dir={tmp_path / 'run'}")
    assert code == 0, err
    record = result(tmp_path / "run")
    validations = [x for x in records(tmp_path / "run") if "val/diversity" in x]
    assert [x["step"] for x in validations] == [4, 8, 12, 16]
    name = "val/classifier_frechet_distance"
    best = min(validations, key=lambda x: x[name])
    assert best["step"] == 8
    assert record["metrics"][name] == best[name]
    assert (record["protocol"]["selection"], record["protocol"]["selected_epoch"]) == (f"best {name}", 2.0)
    assert record["timing"]["train_steps"] == 16
    row = next(line for line in out.splitlines() if line.startswith(name))
    assert "Frechet distance" in row
    # The parameters are those of that epoch: with the same noise, the numbers are the same.
    model, data = opened(tmp_path / "run")
    images, truth = (
        generate_images(model, data.validation, 80, seed=0, stream="validation")[0],
        real_images(data.validation, 80),
    )
    assert diversity(images, truth) == pytest.approx(best["val/diversity"], rel=1e-9)
    features = dataset_classifier(data).features
    distance = real_distance(features(truth), features(images))
    assert 0.01 * distance == pytest.approx(best[name], rel=1e-6)
    assert len({x["val/diversity"] for x in validations}) == 4


def test_selection_without_a_helping_hand(here: Command, tmp_path: Path) -> None:
    words = [*GAN, *SELECT, "trainer.learning_rate=0.05", "trainer.max_steps=24", "evaluation.every=2"]
    assert here(*words, f"output_dir={tmp_path / 'run'}")[0] == 0
    name, record = "val/classifier_frechet_distance", result(tmp_path / "run")
    validations = [x for x in records(tmp_path / "run") if name in x]
    assert [x["step"] for x in validations] == [8, 16, 24]
    best = min(validations, key=lambda x: x[name])
    assert record["metrics"][name] == best[name]
    assert record["protocol"]["selected_epoch"] == best["epoch"]
    model, data = opened(tmp_path / "run")
    features = dataset_classifier(data).features
    images, truth = (
        generate_images(model, data.validation, 80, seed=0, stream="validation")[0],
        real_images(data.validation, 80),
    )
    assert frechet_distance(features(truth), features(images)) == pytest.approx(best[name], rel=1e-6)


def test_without_validation_images_the_training_images_are_looked_at(here: Command, tmp_path: Path) -> None:
    code, _, err = here(*GAN, "data.validation=0", "evaluation.quality=false", f"output_dir={tmp_path / 'run'}")
    assert code == 0
    lines = records(tmp_path / "run")
    diagnosed = [line for line in lines if "train/diversity" in line]
    assert [line["step"] for line in diagnosed] == [4, 8]
    assert not any(k.startswith("val/") for line in lines for k in line)
    assert "of the diversity of the train images" in err
    _, data = opened(tmp_path / "run")
    assert torch.equal(
        tiles(pixels(tmp_path / "run" / "figures" / "data.png"), (1, 8, 8)).flatten(0, 1), data.train.images[:50]
    )


# --- resuming ---


def signalled(monkeypatch: pytest.MonkeyPatch, where: str) -> int:
    """Raise a real signal once, in an epoch or in the validation that ends it; return the steps done by then."""
    owner: Any = Adversarial if where == "in an epoch" else SampleValidator
    name = "after_step" if where == "in an epoch" else "__call__"
    number, step = (7, 7) if where == "in an epoch" else (2, 8)
    original, calls = getattr(owner, name), []

    def call(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(owner, name, call)
    return step


@pytest.mark.parametrize("where", ["in an epoch", "in a validation"])
@pytest.mark.parametrize("kind", RESUMED)
def test_resumed_is_uninterrupted(
    kind: str,
    where: str,
    here: Command,
    finished: Callable[..., FinishedRun],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, folder = finished(*RESUMED[kind]).folder, tmp_path / "run"
    with monkeypatch.context() as patch:
        step = signalled(patch, where)
        code, _, err = here(*RESUMED[kind], f"output_dir={folder}")
    assert code == 75
    assert err.splitlines()[-1] == "vaerun: stopped by SIGTERM; run the same command again to resume"
    assert result(folder)["status"] == "interrupted"
    assert load(folder)["progress"]["step"] == step
    assert load(folder)["progress"]["validation_due"] == (where == "in a validation")
    assert here(*RESUMED[kind], f"output_dir={folder}")[0] == 0
    for name in ("last", "best"):
        assert_same_bits(lasting(whole, name), lasting(folder, name))
    if kind == "won":  # counted on both sides of the stop
        flags = [x["train/discriminator_won"] for x in records(whole) if "train/discriminator_won" in x]
        assert flags == [0, 0, 0, 1, 1, 1]
    assert (folder / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    one, other = result(whole), result(folder)
    assert one["metrics"] == other["metrics"]
    assert one["protocol"] == other["protocol"]
    assert one["details"] == other["details"]
    for figure in (whole / "figures").iterdir():
        assert figure.read_bytes() == (folder / "figures" / figure.name).read_bytes()


# --- warnings ---


def warnings(err: str, text: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("vaerun: warning: ") and text in line]


@pytest.mark.parametrize("threshold", [10, 0])
def test_mode_collapse_is_told_once_and_flagged(threshold: int, here: Command, tmp_path: Path) -> None:
    words = [*GAN, f"evaluation.diversity={threshold}", "evaluation.quality=false", "trainer.max_steps=12"]
    code, out, err = here(*words, f"output_dir={tmp_path / 'run'}")
    assert code == 0
    lines, record = records(tmp_path / "run"), result(tmp_path / "run")
    flag = float(threshold == 10)
    assert [x["val/mode_collapse"] for x in lines if "val/mode_collapse" in x] == [flag] * 3
    assert record["metrics"]["test/mode_collapse"] == flag
    assert record["protocol"]["diversity_threshold"] == threshold
    assert f"1: diversity is below {threshold}" in out
    collapses = warnings(err, "mode collapse")
    assert len(collapses) == (2 if threshold else 0)
    log = (tmp_path / "run" / "run.log").read_text()
    for line, split in zip(collapses, ("validation", "test"), strict=False):
        assert f"of the diversity of the {split} images" in line
        assert f"below evaluation.diversity={threshold}" in line
        assert line.removeprefix("vaerun: warning: ") in log
    value = record["metrics"]["test/diversity"]
    assert not threshold or f"have {value:.2f} of the diversity" in collapses[1]


def test_a_collapse_is_told_again_when_it_comes_again(
    here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.1, 0.1, 0.9, 0.2, math.nan])
    monkeypatch.setattr(sample_validation, "diversity", lambda a, b: next(values))
    words = [*GAN, "evaluation.quality=false", "trainer.max_steps=20", "evaluation.pictures=0"]
    code, _, err = here(*words, f"output_dir={tmp_path / 'run'}")
    assert code == 0
    flags = [x["val/mode_collapse"] for x in records(tmp_path / "run") if "val/mode_collapse" in x]
    assert flags == [1, 1, 0, 1, 1]
    assert [line.split("have ")[1][:4] for line in warnings(err, "validation images")] == ["0.10", "0.20"]


def test_a_discriminator_that_has_won_is_told_of(here: Command, tmp_path: Path) -> None:
    words = [*WON, "trainer.winning_steps=3"]
    words += ["trainer.max_steps=16", "trainer.log_every=1", "evaluation.quality=false", "evaluation.pictures=0"]
    code, _, err = here(*GAN, *words, f"output_dir={tmp_path / 'run'}")
    assert code == 0
    lines = [x for x in records(tmp_path / "run") if "train/discriminator_won" in x]
    # The flag follows from the accuracies of the last three steps.
    flawless = [x["train/accuracy_real"] == x["train/accuracy_fake"] == 1 for x in lines]
    assert [x["train/discriminator_won"] for x in lines] == [
        float(i >= 2 and all(flawless[i - 2 : i + 1])) for i in range(16)
    ]
    assert not all(flawless)
    assert lines[-1]["train/discriminator_won"] == 1
    lines_won = warnings(err, "the discriminator has made no mistake for 3 steps")
    rises = [
        i
        for i in range(16)
        if lines[i]["train/discriminator_won"] > (lines[i - 1]["train/discriminator_won"] if i else 0)
    ]
    assert [line.split("step ")[1].split(":")[0] for line in lines_won] == [str(i + 1) for i in rises]
    assert "trainer.discriminator_learning_rate" in lines_won[0]


@pytest.mark.parametrize(
    ("words", "step", "term"),
    [
        (["trainer.learning_rate=1e30", "trainer.discriminator_learning_rate=1e-4"], 2, "discriminator_loss"),
        (["trainer.discriminator_learning_rate=1e30"], 1, "generator_loss"),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run(
    words: list[str], step: int, term: str, here: Command, tmp_path: Path
) -> None:
    code, out, err = here(*GAN, *words, "model.generator.hidden=[8,8]", f"output_dir={tmp_path / 'run'}")
    assert (code, out) == (1, "")
    _, line = err.splitlines()  # the first says what was read
    assert line.startswith(f"vaerun: error: training stopped at step {step}: the term '{term}' is not finite")
    assert "The update was skipped" in line
    record = result(tmp_path / "run")
    assert (record["status"], record["error"]) == ("failed", line.removeprefix("vaerun: error: "))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_same_command_again_shows_the_same(finished: Callable[..., FinishedRun], here: Command) -> None:
    run = finished(*INFOGAN)
    before = {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    code, out, err = here(*INFOGAN, f"output_dir={run.folder}")
    assert (code, err) == (0, "")
    assert out == f"already finished: {run.folder}\n{run.out}"
    assert before == {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    assert json.loads((run.folder / "result.json").read_text())["status"] == "ok"
