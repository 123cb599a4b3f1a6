"""Whole runs of data at the edges: every model ends in finite numbers, or refuses or stops in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.runs.adversarial_runs import NETWORKS, Command
from support.runs.commands import FAST_AMIS
from support.runs.evaluating import Evaluate

pytestmark = pytest.mark.usefixtures("command_environment")
SHORT = """trainer.max_steps=4 trainer.batch_size=20 trainer.log_every=2 trainer.device=cpu data.validation=20
evaluation.pictures=0""".split()  # noqa: SIM905
MODELS = dict.fromkeys(("vae", "vae_full", "vae_hf", "vae_iaf", "sa_vae", "vlae", "cvae"), "model.latent_dim=3")
MODELS |= {
    "ppca": "model.latent_dim=3",
    "ae": "model.latent_dim=3",
    "draw": "model.latent_dim=6 model.decoder.steps=3 model.decoder.hidden=16 model.encoder.hidden=16",
}
WITHOUT_LIKELIHOOD = ("ae",)
models = pytest.mark.parametrize("model", MODELS)
Run = Callable[..., tuple[int, dict[str, Any], str]]


def images(kind: str, n: int, side: int = 6) -> np.ndarray:
    if kind.isdigit():
        return np.full((n, 1, side, side), int(kind), dtype=np.uint8)
    random = np.random.RandomState(n).randint(0, 256, (n, 1, side, side)).astype(np.uint8)
    return random // 128 * 255 if kind == "binary" else random


@pytest.fixture
def at_edge(here: Command, tmp_path: Path) -> Run:
    """Runs the command on images of a kind; gives exit code, the record and standard error."""

    def call(kind: str, model: str, *words: str, train: int = 60, test: int = 10, side: int = 6) -> Any:
        arrays = {"train_images": images(kind, train, side), "test_images": images(kind, test, side)}
        arrays |= {"train_labels": np.arange(train) % 2, "test_labels": np.arange(test) % 2}
        np.savez(tmp_path / "data.npz", **arrays)
        likelihood = "evaluation=" not in " ".join(words) and not model.endswith("gan")
        small = ["evaluation.samples=20", *FAST_AMIS] if likelihood else []
        overrides = {w.split("=")[0]: w for w in [*SHORT, *small, *MODELS.get(model, "").split(), *words]}
        folder = tmp_path / "run"
        head = [f"model={model}", "data=npz", f"data.path={tmp_path / 'data.npz'}", f"output_dir={folder}"]
        code, _, err = here(*head, *overrides.values())
        record = json.loads((folder / "result.json").read_text()) if (folder / "result.json").exists() else {}
        return code, record, err

    return call


def assert_finite(record: dict[str, Any], model: str) -> None:
    """Every number is there and finite; standard errors lack for a single image."""
    results = {k: v for k, v in record["metrics"].items() if not k.endswith("_se")}
    assert all(v is not None and math.isfinite(v) for v in results.values()), results
    required = {"test/reconstruction_error"} if model in WITHOUT_LIKELIHOOD else {"test/log_likelihood", "test/elbo"}
    assert required <= results.keys()


@pytest.mark.parametrize(
    "model", [pytest.param(m, marks=[] if m in ("vae", "vlae", "ppca") else pytest.mark.slow) for m in MODELS]
)
def test_images_all_black(model: str, at_edge: Run) -> None:
    code, record, err = at_edge("0", model)
    assert code == 0, err
    assert_finite(record, model)
    assert ("their likelihood is unbounded" in err) == (model == "ppca")


@pytest.mark.slow
@models
@pytest.mark.parametrize("kind", ["255", "100"])
def test_images_all_white_or_grey(model: str, kind: str, at_edge: Run) -> None:
    code, record, err = at_edge(kind, model)
    assert code == 0, err
    assert_finite(record, model)


@pytest.mark.slow
@pytest.mark.parametrize("model", [m for m in MODELS if m != "ppca"])  # which is Gaussian
@pytest.mark.parametrize("kind", ["0", "255"])
def test_pixels_that_are_all_zero_or_one(model: str, kind: str, at_edge: Run) -> None:
    code, record, err = at_edge(kind, model, "model.likelihood=bernoulli")
    assert code == 0, err
    assert_finite(record, model)
    if model not in WITHOUT_LIKELIHOOD:
        assert record["metrics"]["test/elbo"] < 0  # a probability is at most 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["0", "255", "noise"])
@pytest.mark.parametrize("transform", [["data.dequantize=true"], ["data.dequantize=true", "data.logit=true"]])
def test_dequantised_extremes_have_bits(kind: str, transform: list[str], at_edge: Run) -> None:
    code, record, err = at_edge(kind, "vae", *transform)
    assert code == 0, err
    assert_finite(record, "vae")
    m = record["metrics"]
    assert m["test/bits_per_dimension"] == pytest.approx(8 - m["test/log_likelihood"] / (36 * math.log(2)))


@pytest.mark.slow
@models
def test_more_latent_dimensions_than_pixels_are_trained(model: str, at_edge: Run) -> None:
    words = ["model.latent_dim=12", *(["model.inference.hidden=[16]"] if model == "vae_iaf" else [])]
    code, record, err = at_edge("noise", model, *words, side=2)
    if model == "ppca":  # has no closed form there
        assert code == 2
        assert "model.latent_dim=12 must be below the 4 pixels" in err
        return
    assert code == 0, err
    assert_finite(record, model)


@pytest.mark.slow
@models
def test_one_image_each_one_sample_and_batches_of_one(model: str, at_edge: Run) -> None:
    validation = 0 if model == "cvae" else 1  # each of its two classes needs a training image
    words = ["trainer.batch_size=1", f"data.validation={validation}", "evaluation.samples=1"]
    code, record, err = at_edge("noise", model, *words, train=2 if model != "ppca" else 8, test=1)
    assert code == 0, err
    assert_finite(record, model)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vae", "vae_iaf", "vlae"])
def test_a_hundred_thousand_samples(model: str, at_edge: Run) -> None:
    code, record, err = at_edge("noise", model, "evaluation.samples=100000", "evaluation.images=2")
    assert code == 0, err
    assert_finite(record, model)
    assert 1 <= record["metrics"]["test/effective_sample_size"] <= 100_000


@pytest.mark.slow
@pytest.mark.parametrize("model", [m for m in MODELS if m not in ("ppca", "ae", "draw")])
@pytest.mark.parametrize("variance", ["1e-12", "1e12"])
def test_variances_at_the_ends_of_their_range(model: str, variance: str, at_edge: Run) -> None:
    code, record, err = at_edge("noise", model, f"model.fixed_variance={variance}")
    assert code == 0, err
    assert_finite(record, model)


@pytest.mark.parametrize("variance", ["0", "1e-13", "1e13", "nan", "inf", "-1"])
def test_variances_beyond_it_are_refused(variance: str, at_edge: Run) -> None:
    code, _, err = at_edge("noise", "vae", f"model.fixed_variance={variance}")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "model.fixed_variance must be " in err


def test_a_precision_without_a_factor_ends_the_run_by_name(at_edge: Run) -> None:
    code, record, err = at_edge("noise", "vlae", "model.fixed_variance=1e-12", "model.latent_dim=60")
    assert code == 1
    assert "training stopped at step 1: the term 'kl' is not finite" in err
    assert "no Cholesky factor" in err
    assert record["status"] == "failed"


@pytest.mark.parametrize("model", ["gan", "cgan", "infogan"])
def test_adversarial_models_of_one_image_repeated_are_refused(model: str, at_edge: Run) -> None:
    code, _, err = at_edge("0", model, *NETWORKS["gan_mlp"])
    assert code == 2
    assert "are all the same" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("rate", ["1000", "1e30"])
@pytest.mark.parametrize("estimator", ["gan_nonsaturating", "gan_minimax"])
def test_networks_driven_to_saturation_are_told_of(rate: str, estimator: str, at_edge: Run) -> None:
    rates = [f"trainer.{name}={rate}" for name in ("learning_rate", "discriminator_learning_rate")]
    code, record, err = at_edge("binary", "gan", *NETWORKS["gan_mlp"], *rates, f"estimator={estimator}")
    if code == 1:
        assert "is not finite; likely cause: " in err
    else:
        assert code == 0
        assert "mode collapse" in err
        assert record["metrics"]["test/mode_collapse"] == 1


@pytest.mark.parametrize("words", [[], ["trainer.average=null"]])
def test_a_generator_that_diverges_at_the_last_step_fails_the_run(words: list[str], at_edge: Run) -> None:
    """No step comes after it that would see its loss."""
    rates = ["trainer.learning_rate=1e38", "trainer.discriminator_learning_rate=1e-4", "trainer.max_steps=1"]
    code, _, err = at_edge("binary", "gan", *NETWORKS["gan_mlp"], *rates, *words)
    assert code == 1
    assert "some generated images are not finite: the parameters have diverged" in err


@pytest.mark.parametrize("model", ["vae", "ae"])
def test_a_model_that_diverges_at_the_last_step_fails_the_run(model: str, at_edge: Run) -> None:
    """Without a validation the evaluation is what sees it."""
    words = ["trainer.learning_rate=1e38", "trainer.max_steps=1", "data.validation=0"]
    code, record, err = at_edge("noise", model, *words)
    assert code == 1
    assert "is not finite for some images: the parameters have diverged" in err.splitlines()[-1]
    assert record["status"] == "failed"


def test_a_posterior_without_width_is_told_of(at_edge: Run, evaluate: Evaluate, tmp_path: Path) -> None:
    """log-variance -1000: the bounds are right, and what single precision cannot hold is named, not made up."""
    assert at_edge("noise", "vae")[0] == 0
    path = tmp_path / "run" / "checkpoints" / "best.pt"
    for log_variance, code in ((-1000.0, 0), (1000.0, 1)):
        state = torch.load(path, weights_only=True)
        state["objective"]["model.inference.log_variance.weight"].zero_()
        state["objective"]["model.inference.log_variance.bias"].fill_(log_variance)
        torch.save(state, path)
        result, _, err = evaluate(f"run={tmp_path / 'run'}", f"evaluation.samples={21 + code}")
        assert result == code, err
        assert "kl_by_dimension is not finite for 3 of 3 latent dimensions" in err
        assert "posterior collapse" not in err
        if code:
            assert "test/log_likelihood is not finite" in err
            continue
        record = json.loads((tmp_path / "run" / "result.json").read_text())
        (again,) = record["evaluations"].values()
        assert again["metrics"]["test/kl"] == pytest.approx(1500, rel=0.01)  # 3 times (1000 - 1) / 2, and the means'
        assert again["details"]["kl_by_dimension"] == [None] * 3
