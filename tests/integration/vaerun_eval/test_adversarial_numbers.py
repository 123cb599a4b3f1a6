"""Numbers of `vaerun-eval` on adversarial runs, each against its definition."""

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
    NETWORKS,
    QUALITY,
    QUICK,
    added,
    environment,
    opened,
    warned,
)
from support.runs.evaluating import Evaluate

from vaerun.data.arrays import Arrays
from vaerun.data.dataset import ImageData
from vaerun.evaluation.latent.probe import linear_probe
from vaerun.evaluation.likelihood.annealed import Annealing, annealed_importance_sampling, bidirectional
from vaerun.evaluation.likelihood.parzen import VARIANCES
from vaerun.evaluation.samples.feature_pooling import pooled_features
from vaerun.evaluation.samples.sample_quality import diversity, frechet_distance, prdc
from vaerun.evaluation.samples.sample_validation import generate_images
from vaerun.run.evaluate.classifier import dataset_classifier

pytestmark = pytest.mark.usefixtures("command_environment")
SETTINGS = Annealing(temperatures=4, chains=3, adapt=False)


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory)


# --- each number against its definition ---


def test_quality(copied: Callable[..., Path], evaluate: Evaluate) -> None:
    """Forty generated images with another seed, against the first forty validation images."""
    run = copied(*CGAN)
    words = ["evaluation.generated.samples=40", "evaluation.split=validation", "seed=5"]
    code, out, _ = evaluate(f"run={run}", *words, "evaluation.generated.neighbours=4")
    assert code == 0
    label, record = added(run)
    assert label.startswith("digits-validation-")
    metrics = {k.removeprefix("validation/"): v for k, v in record["metrics"].items()}
    model, data = opened(run)
    images, truth = generate_images(model, data.validation, 40, seed=5)[0], data.validation.images[:40].float() / 255
    space = dataset_classifier(data)
    right = sum(int(space.predict(images[i : i + 1])) == int(data.validation.labels[i]) for i in range(40))  # type: ignore[index]
    assert metrics["label_agreement"] == pytest.approx(right / 40)
    a, b = space.features(truth), space.features(images)
    near = prdc(a, b, neighbours=4)
    assert metrics["diversity"] == pytest.approx(diversity(images, truth), rel=1e-9)
    assert metrics["classifier_frechet_distance"] == pytest.approx(frechet_distance(a, b), rel=1e-6)
    for name in QUALITY - {"classifier_frechet_distance"}:
        assert metrics[name] == pytest.approx(getattr(near, name)), name
    assert record["details"]["classifier"] == {"name": space.name, "accuracy": space.accuracy}
    assert record["protocol"]["generated"] == {"samples": 40, "neighbours": 4}
    assert "4 neighbours" in out
    assert "60 validation images" in out


@pytest.mark.parametrize("kind", ["gan", "cgan", "infogan"])
def test_density_with_a_variance_that_is_given(kind: str, copied: Callable[..., Path], evaluate: Evaluate) -> None:
    words = {"gan": GAN, "cgan": CGAN, "infogan": INFOGAN}[kind]
    run = copied(*words, *FAST, "model.fixed_variance=0.04", "evaluation.pictures=0")
    code, out, _ = evaluate(f"run={run}", "evaluation.ais=true", "evaluation.bdmc=true", *CHEAP)
    assert code == 0
    label, record = added(run)
    assert record["metrics"]["test/observation_variance"] == 0.04
    assert "observation" not in record["details"]
    assert "observation" not in record["protocol"]
    row = next(line for line in out.splitlines() if line.startswith("test/observation_variance"))
    assert row.endswith("fixed")
    assert ("log p(x|label)" in out) == (kind == "cgan")
    model, data = opened(run)
    assert model.variance == 0.04
    arrays = np.load(run / "per_example.npz")
    bound = annealed_importance_sampling(model.observation_model(0.04), data.test, SETTINGS, seed=0, images=5)
    torch.testing.assert_close(torch.from_numpy(arrays[f"{label}/ais"]), bound["ais"], rtol=1e-5, atol=1e-4)
    both = bidirectional(model.observation_model(0.04), SETTINGS, seed=0, images=5)
    for name in ("bdmc_lower", "bdmc_upper"):
        torch.testing.assert_close(torch.from_numpy(arrays[f"{label}/{name}"]), both[name], rtol=1e-5, atol=1e-4)


def test_density_with_the_variance_that_was_chosen(copied: Callable[..., Path], evaluate: Evaluate) -> None:
    """AIS is that of the model with this variance; what was tried are AIS of validation images, all of one seed."""
    run = copied(*INFOGAN)
    assert evaluate(f"run={run}", "evaluation.ais=true", *CHEAP, *FAST, "seed=5")[0] == 0
    _, record = added(run)
    model, data = opened(run)
    variance = record["metrics"]["test/observation_variance"]
    assert not math.isclose(variance, 0.04)
    bound = annealed_importance_sampling(model.observation_model(variance), data.test, SETTINGS, seed=5, images=5)[
        "ais"
    ]
    assert record["metrics"]["test/ais"] == pytest.approx(float(bound.mean()), rel=1e-5)
    tried = {float(k): v for k, v in record["details"]["observation"]["values"].items()}
    validation = annealed_importance_sampling(
        model.observation_model(0.1), data.validation, SETTINGS, seed=5, images=3
    )["ais"]
    assert tried[0.1] == pytest.approx(float(validation.mean()), rel=1e-5)


def test_a_variance_at_the_edge_is_told_of(
    copied: Callable[..., Path], evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vaerun.evaluation.likelihood.observation_variance import VarianceChoice
    from vaerun.run.evaluate import adversarial as module

    run = copied(*GAN)
    choice = VarianceChoice(0.5, {0.5: -3.0, 0.1: -math.inf}, 1, True)
    monkeypatch.setattr(module, "choose_variance", lambda *arguments, **options: choice)
    code, _, err = evaluate(f"run={run}", "evaluation.ais=true", *CHEAP, *FAST)
    assert code == 0
    _, record = added(run)
    assert record["metrics"]["test/observation_variance"] == 0.5
    assert record["details"]["observation"]["values"] == {"0.5": -3.0, "0.1": None}
    assert any("the observation variance 0.5 is at the edge" in line for line in warned(err))


def test_parzen(copied: Callable[..., Path], evaluate: Evaluate, tmp_path: Path) -> None:
    """log 1/S sum_s N(x; y_s, s2 I), written out; s2 is the best on all validation images, here unlike the others."""
    run, random = copied(*GAN), np.random.RandomState(0)
    train, test = random.randint(100, 156, (60, 1, 8, 8)), random.randint(0, 256, (30, 1, 8, 8))
    np.savez(tmp_path / "x.npz", train_images=train.astype(np.uint8), test_images=test.astype(np.uint8))
    words = ["data=npz", f"data.path={tmp_path / 'x.npz'}", "data.validation=25", "evaluation.images=20"]
    code, out, err = evaluate(f"run={run}", "evaluation.parzen=true", *words)
    assert code == 0
    label, record = added(run)
    model = opened(run)[0]
    given = np.load(tmp_path / "x.npz")
    data = ImageData("npz", Arrays(given["train_images"], None, given["test_images"], None, ""), validation=25)
    centres = generate_images(model, data.test, 50, seed=0)[0].double()

    def density(images: torch.Tensor, variance: float) -> torch.Tensor:
        each = torch.distributions.Normal(centres, variance**0.5).log_prob(images.double()[:, None])
        return each.flatten(2).sum(2).logsumexp(1) - math.log(50)

    def best_of(images: torch.Tensor) -> float:
        return max((v for v in VARIANCES if v > 1e-3), key=lambda v: float(density(images.float() / 255, v).mean()))

    best = record["metrics"]["test/parzen_variance"]
    assert best == pytest.approx(best_of(data.validation.images))
    assert best < best_of(data.test.images[:20])
    expected = density(data.test.images[:20].float() / 255, best)
    values = np.load(run / "per_example.npz")[f"{label}/parzen_log_likelihood"]
    torch.testing.assert_close(torch.from_numpy(values), expected, rtol=1e-5, atol=1e-5)
    assert [line for line in warned(err) if "Theis et al. 2016" in line]
    assert record["protocol"]["parzen_samples"] == 50
    assert "Parzen window on 50 generated images, nats: KNOWN TO MISLEAD" in out


def test_probe(copied: Callable[..., Path], evaluate: Evaluate) -> None:
    """A linear classifier of the discriminator's pooled features, fitted to all 250 training images."""
    run = copied("model=dcgan", *NETWORKS["dcgan"], *QUICK)
    code, out, _ = evaluate(f"run={run}", "evaluation.probe=true", *FAST)
    assert code == 0
    _, record = added(run)
    model, data = opened(run)
    with torch.no_grad():
        fitted, fresh = (
            pooled_features(model.feature_maps(s.images[:250].float() / 255)) for s in (data.train, data.test)
        )
    assert data.train.labels is not None
    assert data.test.labels is not None
    probe = linear_probe(fitted, data.train.labels, fresh[:60], data.test.labels[:60], seed=0)
    assert record["metrics"]["test/probe_accuracy"] == pytest.approx(probe.accuracy)
    most = data.train.labels.bincount().argmax()
    majority = float((data.test.labels[:60] == most).float().mean())
    assert record["metrics"]["test/probe_majority"] == pytest.approx(majority)
    assert probe.accuracy > majority + 0.2
    assert "the discriminator's features" in out
