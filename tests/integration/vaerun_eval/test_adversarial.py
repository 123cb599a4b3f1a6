"""`vaerun-eval` on adversarial runs, and what is evaluated of generated images whatever the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.runs.adversarial_runs import (
    CGAN,
    CHEAP,
    FAST,
    GAN,
    INFOGAN,
    QUALITY,
    SETS,
    Command,
    added,
    assert_close,
    environment,
    pixels,
    save,
    shown,
    tiles,
    warned,
)
from support.runs.commands import FAST_AMIS, records, state, tensorboard
from support.runs.evaluating import SMALL, Evaluate, result

import vaerun
from vaerun.evaluation.samples.sample_quality import frechet_distance
from vaerun.evaluation.samples.sample_validation import generate_images, real_images
from vaerun.run.evaluate.classifier import dataset_classifier

pytestmark = pytest.mark.usefixtures("command_environment")


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory)


# --- everything at once ---


def test_everything_is_recorded_and_nothing_replaced(copied: Callable[..., Path], evaluate: Evaluate) -> None:
    run = copied(*GAN)
    before, kept = result(run), {p: v for p, v in state(run).items() if "checkpoints" in p or "figures" in p}
    words = [f"evaluation.{k}=true" for k in ("ais", "bdmc", "estimates", "parzen", "probe", "arrays")] + CHEAP + SETS
    words += ["evaluation.estimate.images=3", "evaluation.estimate.samples=20"]
    words += ["evaluation.interpolation=[a,7,one]", "evaluation.arithmetic=[a - one + 17,5]"]
    code, out, err = evaluate(f"run={run}", *words)
    assert code == 0, err
    after = result(run)
    label, record = added(run)
    assert label.startswith("digits-test-")
    assert {k: v for k, v in after.items() if k != "evaluations"} == before
    assert {p: v for p, v in state(run).items() if p in kept} == kept

    # Names; what the run itself had found is found again.
    names = {"parzen_log_likelihood", "ais", "ais_ess", "ais_acceptance", "bdmc_lower", "bdmc_upper", "bdmc_gap"}
    names |= {"bdmc_acceptance_forward", "bdmc_acceptance_reverse"}
    single = {"diversity", "mode_collapse", "observation_variance", "parzen_variance", "probe_accuracy"}
    single |= {"probe_majority"} | QUALITY
    metrics = {k.removeprefix("test/"): v for k, v in record["metrics"].items()}
    assert metrics.keys() == single | names | {f"{name}_se" for name in names}
    assert all(math.isfinite(v) for v in metrics.values())
    assert before["metrics"].items() <= record["metrics"].items()

    # Values per image, and the numbers are their means.
    arrays = dict(np.load(run / "per_example.npz"))
    assert arrays.keys() == {"row", f"{label}/row"} | {f"{label}/{name}" for name in names}
    for name in names:
        values = arrays[f"{label}/{name}"]
        assert values.shape == ((60,) if name.startswith("parzen") else (5,))
        assert metrics[name] == pytest.approx(values.mean())
        assert metrics[f"{name}_se"] == pytest.approx(values.std(ddof=1) / len(values) ** 0.5)
    assert metrics["bdmc_gap"] == pytest.approx(metrics["bdmc_upper"] - metrics["bdmc_lower"])

    # What was tried for s2, of which the best was taken.
    tried = record["details"]["observation"]
    assert tried.keys() == {"images", "variance", "values", "beyond", "at_edge"}
    assert tried["images"] == 3
    assert metrics["observation_variance"] == tried["variance"]
    values = {float(k): v for k, v in tried["values"].items()}
    assert {0.03, 0.1} < values.keys()
    assert max(values, key=values.__getitem__) == pytest.approx(tried["variance"], rel=1e-3)
    assert record["protocol"]["observation"] == {"variances": [0.03, 0.1], "images": 3}
    assert record["protocol"]["annealing"]["images"] == 5

    # There is no q to sample from.
    estimates = record["details"]["estimates"]
    assert {"prior", "amis"} < estimates.keys()
    assert "posterior" not in estimates
    assert estimates["ais"]["value"] == pytest.approx(arrays[f"{label}/ais"][:3].mean())

    # Figures, TensorBoard and metrics.jsonl; three tiles to an operand's row and to the three of its result.
    sizes = {"data": (5, 10), "interpolation": (2, 8), "arithmetic_1": (4, 3), "arithmetic_2": (4, 3)}
    assert {p.stem for p in (run / "figures" / label).iterdir()} == sizes.keys() | {"estimates"}
    assert {name: shown(run, label, name).shape[:2] for name in sizes} == sizes
    events = tensorboard(run)
    assert {f"images/{label}/{name}" for name in sizes} <= set(events.Tags()["images"])
    (scalar,) = events.Scalars(f"{label}/test/ais")
    assert (scalar.step, scalar.value) == (8, pytest.approx(metrics["ais"], rel=1e-6))
    assert records(run)[-1].keys() == {"step", "epoch"} | {f"{label}/test/{k}" for k in metrics}

    # The archive: the samples of the picture.
    assert_close(tiles(pixels(run / "figures" / "samples.png"), (1, 8, 8)), torch.from_numpy(samples_of(run, label)))

    # Every printed number says what it is: unit, split, how many, which bound.
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith("test/")}
    assert rows.keys() == {f"test/{name}" for name in single | names}
    assert all(len(row.split("  ")[-1]) > 10 for row in rows.values())
    assert "60 test images" in out
    assert "nats per image under N(G(z), s2 I)" in out
    assert "(nats), 4 temperatures, 3 chains, 5 images: a lower bound in expectation" in rows["test/ais"]
    assert "a lower bound in expectation" in rows["test/bdmc_lower"]
    assert "an upper bound in expectation" in rows["test/bdmc_upper"]
    assert "from validation images" in rows["test/observation_variance"]
    assert "MISLEAD" in rows["test/parzen_log_likelihood"]
    assert "50 generated and real images" in rows["test/classifier_frechet_distance"]
    assert "figure interpolation: a -> 7 -> one" in out
    assert "figure arithmetic_1: a - one + 17; the operands" in out
    assert out.splitlines()[-1] == f"recorded in {run} as {label}"
    told = warned(err)
    assert len([line for line in told if "known to mislead" in line]) == 1
    assert len([line for line in told if "mode collapse" in line]) == metrics["mode_collapse"]


def samples_of(run: Path, label: str) -> np.ndarray:
    with np.load(run / f"arrays-{label}.npz") as archive:
        assert {name for name in archive if not name.startswith("estimates_")} == {"samples"}
        return archive["samples"]


# --- other data ---


def test_another_data_set_of_the_same_shape(copied: Callable[..., Path], evaluate: Evaluate, tmp_path: Path) -> None:
    run = copied(*INFOGAN)
    path = save(tmp_path / "noise.npz", (1, 8, 8), classes=3)
    words = ["data=npz", f"data.path={path}", "data.validation=10"]
    code, out, _ = evaluate(f"run={run}", *words, "evaluation.probe=true")
    assert code == 0
    label, record = added(run)
    assert label.startswith("npz-test-")
    assert record["protocol"]["images"] == {"train": 50, "validation": 10, "test": 20}
    assert record["protocol"]["generated"]["samples"] == 20
    assert record["details"]["classifier"]["name"].startswith("vaerun-classifier-v1 of npz")
    assert 0.3 < record["metrics"]["test/categorical_1_accuracy"] <= 1
    assert record["metrics"]["test/probe_majority"] == pytest.approx(0.35)
    assert "trained on digits, evaluated on npz" in out
    assert shown(run, label, "data").shape[:2] == (2, 10)


def test_a_data_set_without_labels(copied: Callable[..., Path], evaluate: Evaluate, tmp_path: Path) -> None:
    """Nothing that needs them is found; the run may have been selected by what needs them."""
    selection = ["evaluation.selection=classifier_frechet_distance", "trainer.early_stopping=5"]
    run = copied(*INFOGAN, *selection)
    path = save(tmp_path / "plain.npz", (1, 8, 8))
    code, _, err = evaluate(f"run={run}", "data=npz", f"data.path={path}", "data.validation=0")
    assert code == 0, err
    assert added(run)[1]["metrics"].keys() == {"test/diversity", "test/mode_collapse"}
    assert any("no labels of two to 10000 classes" in line for line in warned(err))


def test_labels_of_one_class_are_no_labels(here: Command, tmp_path: Path) -> None:
    path, own = save(tmp_path / "one.npz", (1, 8, 8), classes=1), [w for w in GAN if "train_images" not in w]
    words = [*own, "data=npz", f"data.path={path}", "trainer.batch_size=16", "trainer.max_steps=2"]
    code, _, err = here(*words, f"output_dir={tmp_path / 'run'}")
    assert code == 0
    assert result(tmp_path / "run")["metrics"].keys() == {"test/diversity", "test/mode_collapse"}
    assert "no labels of two to 10000 classes" in err


# --- models with a likelihood ---


@pytest.mark.parametrize("model", ["vae", "cvae"])
def test_samples_of_a_likelihood_model(model: str, copied: Callable[..., Path], evaluate: Evaluate) -> None:
    run = copied(f"model={model}", *SMALL)
    words = ["evaluation.quality=true", "evaluation.generated.neighbours=3", "evaluation.label=4"]
    words += ["evaluation.interpolation=[3,8]", "evaluation.arithmetic=[3 - 8 + 5]"]
    code, out, err = evaluate(f"run={run}", *words)
    assert code == 0, err
    label, record = added(run)
    metrics = {k.removeprefix("test/"): v for k, v in record["metrics"].items()}
    assert {"diversity", "log_likelihood"} | QUALITY <= metrics.keys()
    assert not {"mode_collapse", "observation_variance"} & metrics.keys()
    assert ("label_agreement" in metrics) == (model == "cvae")
    assert record["protocol"]["generated"] == {"samples": 12, "neighbours": 3}
    assert "12 decoded (E[x|z], z from the prior) and real images" in out
    # Of E[x | z] at z from the prior, with the labels of the test images.
    trained = vaerun.load_run(run)
    data = trained.data
    images, given = generate_images(trained.model, data.test, 12, seed=0)  # type: ignore[arg-type]
    assert (given is None) == (model == "vae")
    features = dataset_classifier(data).features
    distance = frechet_distance(features(real_images(data.test, 12)), features(images))
    assert metrics["classifier_frechet_distance"] == pytest.approx(distance, rel=1e-6)
    # The walks' ends are samples: those of the run's own figures.
    walk = shown(run, label, "interpolation")
    assert walk.shape[:2] == (1, 8)
    assert shown(run, label, "arithmetic_1").shape[:2] == (4, 3)
    if model == "vae":
        samples = tiles(pixels(run / "figures" / "samples.png"), (1, 8, 8)).flatten(0, 1)
        ends = samples[3], samples[8]
    else:
        classes = tiles(pixels(run / "figures" / "classes.png"), (1, 8, 8))
        ends = classes[4, 3], classes[4, 8]
    assert torch.equal(walk[0, 0], ends[0])
    assert torch.equal(walk[0, 7], ends[1])


@pytest.mark.parametrize(
    "word",
    ["quality=true", "interpolation=[1,2]", "arithmetic=[1 - 2]", "inception_weights=weights.pth", "parzen=true"],
)
def test_a_plain_autoencoder_has_no_samples(word: str, copied: Callable[..., Path], evaluate: Evaluate) -> None:
    run = copied("model=ae", *SMALL)
    before = state(run)
    code, out, err = evaluate(f"run={run}", f"evaluation.{word}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"evaluation.{word.split('=')[0]} " in err
    assert ("needs a likelihood, and a plain autoencoder" in err) == (word != "parzen=true")
    assert state(run) == before


# --- refused ---


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluation.interpolation=[1,b]", *SETS], "unknown set 'b'"),
        (["evaluation.interpolation=[1]"], "two or more sets or sample numbers"),
        (["evaluation.arithmetic=[a -]", *SETS], "is missing after the last '-'"),
        (["evaluation.arithmetic=[a one]", *SETS], "+ or - is missing before 'one'"),
        (["evaluation.sets.a-b=[1]", "evaluation.interpolation=[1,2]"], "does not start with a digit"),
        (["evaluation.sets.a=[-1]"], "integer of at least 0, got -1"),
        (["evaluation.gaps=true"], "needs a posterior"),
        (["evaluation.samples=50000"], "evaluation.samples does not apply to model=gan"),
        (["evaluation.gap.samples=3"], "evaluation.gap does not apply to model=gan"),
        (["evaluation.gradient_noise=true"], "needs a posterior"),
        (["evaluation.inception_weights=none.pth"], "no such file: none.pth"),
        (["evaluation.generated.neighbours=50"], "evaluation.generated.neighbours=50 needs more images"),
        (["evaluation.generated.samples=1"], "evaluation.generated.samples must be at least 2"),
        (["evaluation.images=1", *FAST], "needs two or more test images, got 1"),
        (["evaluation.observation.variances=[0.1,-1]"], "evaluation.observation.variances"),
        (["evaluation.split=train", "evaluation.probe=true"], "fits to the training split"),
        (["evaluation.label=10", "evaluation.interpolation=[1,2]"], ""),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, copied: Callable[..., Path], evaluate: Evaluate) -> None:
    kind = CGAN if "evaluation.label=10" in words else GAN
    run = copied(*kind)
    before = state(run)
    code, out, err = evaluate(f"run={run}", *words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert (said or "evaluation.label=10: the classes are 0, 1, 2") in err
    assert state(run) == before


def test_a_conditional_run_and_other_classes(copied: Callable[..., Path], evaluate: Evaluate, tmp_path: Path) -> None:
    run = copied(*CGAN)
    path = save(tmp_path / "three.npz", (1, 8, 8), classes=3)
    for words, said in (
        (["data=npz", f"data.path={path}"], "conditional on 10 classes, but data set npz has 3"),
        (["evaluation.probe=true"], "its discriminator is given the label"),
    ):
        code, out, err = evaluate(f"run={run}", *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert said in err


def test_adaptive_importance_sampling_on_request(copied: Callable[..., Path], evaluate: Evaluate) -> None:
    """Under the observation model with the chosen variance, without a posterior to start from."""
    folder = copied(*GAN)
    words = ["evaluation.amis=true", *FAST_AMIS, "evaluation.amis.images=4", *CHEAP]
    code, out, err = evaluate(f"run={folder}", *words)
    assert code == 0, err
    ((label, record),) = result(folder)["evaluations"].items()
    metrics, arrays = record["metrics"], np.load(folder / "per_example.npz")
    assert arrays[f"{label}/amis"].shape == (4,)
    assert metrics["test/amis"] == pytest.approx(arrays[f"{label}/amis"].mean())
    assert metrics["test/amis_lower"] <= metrics["test/amis_upper"]
    assert metrics["test/observation_variance"] > 0
    assert record["protocol"]["observation"]["images"] > 0
    assert not {"test/ais", "test/gap_posterior", "test/amis_minus_is"} & metrics.keys()
    assert "log p(x) under N(G(z), s2 I) (nats), 4 images, K=20: a lower bound in expectation" in out
    assert "depend on q" not in out
