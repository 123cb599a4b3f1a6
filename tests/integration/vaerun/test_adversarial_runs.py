"""Runs of adversarial models: what they record and print, on digits and on images of other shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.runs.adversarial_runs import (
    CGAN,
    CODES,
    INFOGAN,
    NETWORKS,
    QUALITY,
    QUICK,
    Command,
    FinishedRun,
    assert_shows,
    environment,
    labels,
    opened,
    pixels,
    save,
    tiles,
)
from support.runs.commands import records, tensorboard
from support.runs.evaluating import result

from vaerun.evaluation.plots.pictures import sample_noise
from vaerun.evaluation.samples import classifier
from vaerun.evaluation.samples.sample_quality import diversity, frechet_distance
from vaerun.evaluation.samples.sample_validation import generate_images, real_images
from vaerun.run.evaluate.classifier import dataset_classifier

pytestmark = pytest.mark.usefixtures("command_environment")
MODELS = ("gan", "dcgan", "cgan", "infogan")
TRAIN = {"discriminator_loss", "generator_loss", "accuracy_real", "accuracy_fake", "learning_rate", "discriminator_won"}
TRAIN |= {"gradient_norm/discriminator", "gradient_norm/generator"}
INFORMATION = {"mutual_information", "code_entropy", "mutual_information_continuous"}


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory)


# --- outputs of a run ---


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("model", MODELS)
def test_a_run(model: str, network: str, finished: Callable[..., FinishedRun]) -> None:
    run = finished(f"model={model}", *NETWORKS[network], *QUICK)
    record = result(run.folder)
    assert (record["status"], record["error"], record["model"]) == ("ok", None, model)
    assert record["estimator"] == "gan_nonsaturating"

    # Metrics are finite and within their range.
    codes = {"categorical_1_accuracy", "categorical_1_baseline"} if model == "infogan" else set()
    metrics = {name.removeprefix("test/"): value for name, value in record["metrics"].items()}
    codes |= {"label_agreement"} if model == "cgan" else set()
    assert metrics.keys() == {"diversity", "mode_collapse"} | QUALITY | codes
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(0 <= metrics[name] <= 1 for name in {"precision", "recall", "coverage"} | codes)
    assert metrics["mode_collapse"] == (metrics["diversity"] < 0.5)
    p = record["protocol"]
    assert (p["family"], p["selection"], p["selected_epoch"]) == ("adversarial", "last epoch", 2.0)
    assert (p["conditional"], p["importance_samples"]) == (model == "cgan", None)
    assert p["generated"] == {"samples": 50, "neighbours": 3}
    assert (p["evaluated_images"], p["evaluated_split"]) == (60, "test")
    assert record["details"]["classifier"]["name"].startswith("vaerun-classifier-v1 of digits")
    if model == "infogan":
        matching = record["details"]["categorical_1_matching"]
        assert sorted(matching, key=int) == [str(k) for k in range(10)]
        assert sorted(matching.values()) == list(range(10))

    # metrics.jsonl and TensorBoard agree.
    lines = records(run.folder)
    train = [{k.removeprefix("train/"): v for k, v in x.items()} for x in lines if "train/learning_rate" in x]
    assert [x["step"] for x in train] == [2, 4, 6, 8]
    for line in train:
        assert line.keys() - {"step", "epoch"} == TRAIN | (INFORMATION if model == "infogan" else set())
        assert all(math.isfinite(v) for v in line.values())
        assert all(0 <= line[k] <= 1 for k in ("accuracy_real", "accuracy_fake"))
        assert line["discriminator_loss"] > 0
        assert line["generator_loss"] > 0
        if model == "infogan":
            assert line["code_entropy"] == pytest.approx(math.log(10))
            assert line["mutual_information"] <= line["code_entropy"]
    validations = [x for x in lines if "val/diversity" in x]
    assert [(x["step"], x["epoch"]) for x in validations] == [(4, 1.0), (8, 2.0)]
    assert all(x.keys() == {"step", "epoch", "val/diversity", "val/mode_collapse"} for x in validations)
    events = tensorboard(run.folder)
    tags = {tag for line in lines for tag in line} - {"step", "epoch"}
    assert set(events.Tags()["scalars"]) >= tags
    for tag in tags:
        expected = [(line["step"], line[tag]) for line in lines if tag in line]
        scalars = [(e.step, e.value) for e in events.Scalars(tag)]
        assert [s for s, _ in scalars] == [s for s, _ in expected]
        np.testing.assert_allclose([v for _, v in scalars], [v for _, v in expected], rtol=1e-6)
    assert "_hparams_/session_start_info" in events.summary_metadata

    # Figures: 10 by 10 samples; a row per class; a row per noise and a column per value of a code.
    sizes = {"data": (5, 10), "samples": (10, 10)}
    sizes |= {"classes": (10, 10)} if model == "cgan" else {}
    sizes |= dict.fromkeys(CODES, (10, 10)) if model == "infogan" else {}
    assert {p.stem for p in (run.folder / "figures").iterdir()} == sizes.keys()
    assert set(events.Tags()["images"]) == {f"images/{name}" for name in sizes}
    for name, size in sizes.items():
        picture = pixels(run.folder / "figures" / f"{name}.png")
        assert tiles(picture, (1, 8, 8)).shape[:2] == size
        assert {e.step for e in events.Images(f"images/{name}")} == {4, 8}

    # Every printed number has a description.
    rows = [line for line in run.out.splitlines() if line.startswith("test/")]
    assert [row.split()[0].removeprefix("test/") for row in rows] == sorted(
        metrics, key=[row.split()[0].removeprefix("test/") for row in rows].index
    )
    assert all(len(row.split(maxsplit=2)[2]) > 15 for row in rows)
    head = run.out.splitlines()[0]
    assert head.startswith(f"{model} on digits")
    assert "60 test images" in head
    assert "not the Inception FID" in run.out
    assert "50 generated and real images" in run.out
    assert "50 of each" in next(row for row in rows if row.startswith("test/diversity"))


def test_numbers_are_what_the_loaded_model_gives(finished: Callable[..., FinishedRun]) -> None:
    """Fifty generated images, with the labels of the first fifty test images, are compared with these."""
    run = finished(*CGAN)
    model, data = opened(run.folder)
    noise = generate_images(model, data.test, 50, seed=0)
    assert noise[1] is not None
    assert noise[1].tolist() == data.test.labels[:50].tolist()
    images, truth = noise[0], data.test.images[:50].float() / 255
    torch.testing.assert_close(real_images(data.test, 50), truth)
    metrics = result(run.folder)["metrics"]
    assert metrics["test/diversity"] == pytest.approx(diversity(images, truth), rel=1e-9)
    features = dataset_classifier(data).features
    distance = frechet_distance(features(truth), features(images))
    assert metrics["test/classifier_frechet_distance"] == pytest.approx(distance, rel=1e-6)


def test_infogan_is_matched_by_what_q_says_of_test_images(finished: Callable[..., FinishedRun]) -> None:
    run = finished(*INFOGAN)
    model, data = opened(run.folder)
    q = model.discriminator(2 * data.test.images[:60].float() / 255 - 1)[1]
    assert q is not None
    assert data.test.labels is not None
    record, values = result(run.folder), q[:, :10].argmax(1)
    assignment = record["details"]["categorical_1_matching"]
    correct = [assignment[str(int(v))] == int(label) for v, label in zip(values, data.test.labels[:60], strict=True)]
    assert record["metrics"]["test/categorical_1_accuracy"] == pytest.approx(np.mean(correct))


@pytest.mark.parametrize(
    ("words", "shape", "classes", "figures"),
    [
        ("model=cgan network=dcgan", (3, 16, 16), 3, {"classes": (3, 10)}),
        ("model=dcgan network=dcgan estimator=gan_minimax", (1, 9, 13), 0, {}),
        (
            "model=infogan network=dcgan model.codes.categorical=[4,2] model.codes.continuous=1",
            (1, 9, 13),
            0,
            {"code_categorical_1": (10, 4), "code_categorical_2": (10, 2), "code_continuous_1": (10, 10)},
        ),
        (
            "model=infogan network=gan_mlp model.codes.categorical=[3] model.codes.continuous=0",
            (3, 16, 16),
            3,
            {"code_categorical_1": (10, 3)},
        ),
    ],
)
def test_other_images(
    words: str,
    shape: tuple[int, ...],
    classes: int,
    figures: dict[str, tuple[int, int]],
    here: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(classifier.RECIPE, "least_steps", 10)
    path = save(tmp_path / "data.npz", shape, classes=classes)
    network = next(w for w in words.split() if w.startswith("network=")).removeprefix("network=")
    quick = [w for w in QUICK if "train_images" not in w and "batch_size" not in w]
    overrides = [*words.split(), *NETWORKS[network][1:], *quick, "trainer.batch_size=16", "data.validation=10"]
    overrides += ["data=npz", f"data.path={path}", "trainer.max_steps=4", f"output_dir={tmp_path / 'run'}"]
    code, out, err = here(*overrides)
    assert code == 0, err
    metrics = {name.removeprefix("test/") for name in result(tmp_path / "run")["metrics"]}
    matched = {"categorical_1_accuracy", "categorical_1_baseline"} if classes and "infogan" in words else set()
    matched |= {"label_agreement"} if "model=cgan" in words else set()
    assert metrics == {"diversity", "mode_collapse"} | matched | (QUALITY if classes else set())
    assert ("no labels of two to 10000 classes" in err) == (not classes)
    assert ("Frechet" in out) == bool(classes)
    sizes = {"data": (1, 10), "samples": (10, 10)} | figures
    assert {p.stem for p in (tmp_path / "run" / "figures").iterdir()} == sizes.keys()
    for name, size in sizes.items():
        assert tiles(pixels(tmp_path / "run" / "figures" / f"{name}.png"), shape).shape[:2] == size
    model, data = opened(tmp_path / "run")
    assert torch.equal(
        tiles(pixels(tmp_path / "run" / "figures" / "data.png"), shape).flatten(0, 1), data.validation.images
    )
    c = labels(data, [(i + i // 10) % classes for i in range(100)]) if model.classes else None
    assert_shows(tmp_path / "run", "samples", model.generate(sample_noise(range(100), model.noise_dim, model.zero), c))
