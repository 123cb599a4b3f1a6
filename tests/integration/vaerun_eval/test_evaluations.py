"""`vaerun-eval` and the evaluations of a run: what is recorded, and where."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.runs.commands import records, state, tensorboard
from support.runs.evaluating import CHEAP, EVERYTHING, SMALL, Evaluate, result, save
from torch import Tensor

from vaerun.config.plugins import group_file
from vaerun.config.schema import EvaluationSettings
from vaerun.evaluation.adaptive.adaptation import Amis
from vaerun.evaluation.likelihood.annealed import Annealing
from vaerun.evaluation.likelihood.estimates import Estimates
from vaerun.evaluation.likelihood.gaps import Refinement
from vaerun.run.build import estimators_by_name


def test_everything_is_recorded_and_nothing_replaced(run: Path, evaluate: Evaluate) -> None:
    before, arrays = result(run), dict(np.load(run / "per_example.npz"))
    kept = {p: v for p, v in state(run).items() if "checkpoints" in p or "figures" in p}
    code, out, _ = evaluate(f"run={run}", *EVERYTHING)
    assert code == 0
    after = result(run)
    (label,) = after["evaluations"]
    assert {k: v for k, v in after.items() if k != "evaluations"} == before
    assert {p: v for p, v in state(run).items() if p in kept} == kept

    record = after["evaluations"][label]
    metrics = record["metrics"]
    expected = {"log_likelihood", "effective_sample_size", "ais", "bdmc_lower", "bdmc_upper", "gap_approximation"}
    expected |= {"gap_amortisation", "active_units", "probe_accuracy", "gradient_noise/elbo_mc/encoder/variance"}
    assert {f"test/{name}" for name in expected} <= metrics.keys()
    assert record["command"][:2] == ["vaerun-eval", f"run={run}"]
    assert record["protocol"]["importance_samples"] == 30
    assert record["protocol"]["annealing"]["temperatures"] == 4
    # The same samples as the run's own evaluation: the same number.
    assert metrics["test/log_likelihood"] == before["metrics"]["test/log_likelihood"]
    assert metrics["test/gap_inference"] == pytest.approx(
        metrics["test/gap_approximation"] + metrics["test/gap_amortisation"]
    )

    optimal = [metrics[f"test/gap_elbo_optimal{end}"] for end in ("", "_from_q", "_from_mode")]
    assert min(optimal[1:]) <= optimal[0]
    assert 0 <= metrics["test/gap_from_mode"] <= 1
    source = record["protocol"]["gap"]["log_likelihood"]
    assert f"log p(x) of these images by {source}" in out

    # Values per image stand beside the run's, and the numbers are their means.
    own = dict(np.load(run / "per_example.npz"))
    assert all(np.array_equal(own[name], value, equal_nan=True) for name, value in arrays.items())
    assert own[f"{label}/ais"].shape == own[f"{label}/bdmc_upper"].shape == (5,)
    assert own[f"{label}/gap_amortisation"].shape == (4,)
    assert own[f"{label}/pareto_k"].shape == (12,)
    assert metrics["test/ais"] == pytest.approx(own[f"{label}/ais"].mean())
    spread = own[f"{label}/ais"].std(ddof=1) / 5**0.5
    assert metrics["test/ais_se"] == pytest.approx(spread)

    # The npz of the split: what the model gives for it.
    kept_arrays = dict(np.load(run / f"arrays-{label}.npz"))
    assert kept_arrays["posterior_mean"].shape == kept_arrays["posterior_variance"].shape == (12, 2)
    assert kept_arrays["reconstructions"].shape == (12, 1, 8, 8)
    assert kept_arrays["samples"].shape[1:] == (1, 8, 8)
    assert kept_arrays["labels"].shape == (12,)
    assert (kept_arrays["posterior_variance"] > 0).all()

    # The estimates against K, with the annealed one of the same images.
    estimates = record["details"]["estimates"]
    assert (estimates["images"], estimates["repeats"]) == (3, 2)
    assert estimates["samples"] == [1, 2, 5, 10, 20]
    assert kept_arrays["estimates_prior"].shape == kept_arrays["estimates_amis"].shape == (3, 2, 5)
    assert estimates["posterior"]["median"] == pytest.approx(np.median(kept_arrays["estimates_posterior"].mean(0), 0))
    assert estimates["amis_adaptation_evaluations"] > 100
    assert estimates["ais"] == {"evaluations": 5619, "value": pytest.approx(own[f"{label}/ais"][:3].mean())}
    assert record["protocol"]["estimate"] == {"samples": 20, "repeats": 2, "images": 3}

    # Figures, TensorBoard and metrics.jsonl.
    names = {"gaps", "gradient_variance", "gradient_snr", "kl_by_dimension", "aggregate_posterior", "posterior_means"}
    names |= {"data", "reconstructions", "estimates"}
    assert len(record["details"]["kl_by_dimension"]) == 2
    assert {p.stem for p in (run / "figures" / label).glob("*.png")} == names
    events = tensorboard(run)
    assert {f"images/{label}/{name}" for name in names} <= set(events.Tags()["images"])
    (scalar,) = events.Scalars(f"{label}/test/ais")
    assert scalar.value == pytest.approx(metrics["test/ais"], rel=1e-6)
    assert scalar.step == before["timing"]["train_steps"]
    assert records(run)[-1][f"{label}/test/ais"] == metrics["test/ais"]
    (again,) = events.Scalars("test/log_likelihood")  # the run's own is still there
    assert again.value == pytest.approx(before["metrics"]["test/log_likelihood"], rel=1e-6)

    # Every printed number says what it is.
    for line in out.splitlines():
        if line.startswith("test/"):
            assert len(line.split(maxsplit=2)[2]) > 10
    assert "signal-to-noise" in out
    assert label in out


def test_the_same_command_gives_the_same_record(run: Path, evaluate: Evaluate) -> None:
    words = [f"run={run}", "evaluation.ais=true", *CHEAP]
    records_found = []
    for _ in range(2):
        assert evaluate(*words)[0] == 0
        (record,) = result(run)["evaluations"].values()
        records_found.append(record)
    assert records_found[0]["metrics"] == records_found[1]["metrics"]
    assert evaluate(*words, "seed=7")[0] == 0
    one, other = result(run)["evaluations"].values()
    assert one["metrics"]["test/ais"] != other["metrics"]["test/ais"]
    assert one["protocol"]["seed"] == 0
    assert other["protocol"]["seed"] == 7


def test_another_split_and_more_samples(run: Path, evaluate: Evaluate) -> None:
    assert evaluate(f"run={run}", "evaluation.split=validation", "evaluation.samples=60")[0] == 0
    ((label, record),) = result(run)["evaluations"].items()
    assert label.startswith("digits-validation-")
    assert record["protocol"]["importance_samples"] == 60
    assert "validation/log_likelihood" in record["metrics"]
    assert not any(name.startswith("test/") for name in record["metrics"])


def test_another_data_set_of_the_same_shape(run: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    path = save(tmp_path / "noise.npz", (1, 8, 8))
    words = ["data=npz", f"data.path={path}", "data.validation=5"]
    code, out, _ = evaluate(f"run={run}", *words)
    assert code == 0
    ((label, record),) = result(run)["evaluations"].items()
    assert label.startswith("npz-test-")
    assert record["protocol"]["data"] == "npz"
    assert record["protocol"]["images"] == {"train": 35, "validation": 5, "test": 20}
    assert "trained on digits, evaluated on npz" in out
    # Noise is no digit.
    assert record["metrics"]["test/log_likelihood"] < result(run)["metrics"]["test/log_likelihood"] - 10
    path = save(tmp_path / "large.npz", (1, 9, 8))
    code, _, err = evaluate(f"run={run}", "data=npz", f"data.path={path}")
    assert (code, err.count("\n")) == (2, 1)
    assert "1x9x8" in err
    assert "1x8x8" in err


def test_a_run_evaluates_what_it_is_told(
    here: Callable[..., tuple[int, str, str]], command_environment: None, tmp_path: Path
) -> None:
    code, out, _ = here("model=vlae", *SMALL, *EVERYTHING, f"output_dir={tmp_path / 'all'}")
    assert code == 0
    record = result(tmp_path / "all")
    arrays = dict(np.load(tmp_path / "all" / "per_example.npz"))
    for name in ("ais", "bdmc_lower", "gap_amortisation", "log_likelihood"):
        assert record["metrics"][f"test/{name}"] == pytest.approx(arrays[name].mean())
        assert f"test/{name} " in out
    assert record["metrics"]["test/gradient_noise/stl/decoder/variance"] > 0
    assert (tmp_path / "all" / "figures" / "gaps.png").exists()
    assert {"posterior_mean", "samples"} <= np.load(tmp_path / "all" / "arrays.npz").keys()


def test_a_plain_autoencoder_has_its_reconstruction_alone(
    here: Callable[..., tuple[int, str, str]], evaluate: Evaluate, tmp_path: Path
) -> None:
    folder = tmp_path / "ae"
    code, out, _ = here("model=ae", *SMALL, f"output_dir={folder}")
    assert code == 0
    assert "not a likelihood" in out
    record = result(folder)
    assert record["protocol"]["units"].endswith("no likelihood")
    assert record["protocol"]["importance_samples"] is None
    assert record["metrics"]["test/reconstruction_error"] > 0
    assert evaluate(f"run={folder}", "evaluation.probe=true", "evaluation.arrays=true")[0] == 0
    ((label, again),) = result(folder)["evaluations"].items()
    assert 0 <= again["metrics"]["test/probe_accuracy"] <= 1
    arrays = dict(np.load(folder / f"arrays-{label}.npz"))
    assert "samples" not in arrays
    for name in ("bdmc", "estimates"):
        code, _, err = evaluate(f"run={folder}", f"evaluation.{name}=true")
        assert (code, err.count("\n")) == (2, 1)
        assert f"evaluation.{name} needs a likelihood" in err


def test_unreliable_estimates_are_told_of(run: Path, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    from vaerun.run.evaluate import likelihood as module

    monkeypatch.setattr(module, "unreliable_share", lambda tail: 0.06)
    _, _, err = evaluate(f"run={run}", "evaluation.samples=100")
    assert "not reliable for 6% of the images" in err
    assert "compare models by test/amis" in err
    _, _, err = evaluate(f"run={run}", "evaluation.samples=100", "evaluation.amis=false")
    assert "compare models by evaluation.amis=true, or with evaluation.ais=true" in err
    annealed = ["evaluation.ais=true", "evaluation.annealing.images=2", "evaluation.annealing.temperatures=2"]
    _, _, err = evaluate(f"run={run}", "evaluation.samples=100", "evaluation.amis=false", *annealed)
    assert "compare with test/ais" in err
    assert "evaluation.ais=true" not in err
    monkeypatch.setattr(module, "unreliable_share", lambda tail: 0.05)
    assert "not reliable" not in evaluate(f"run={run}", "evaluation.samples=101")[2]


def test_the_settings_defaults_are_those_of_the_functions() -> None:
    plain = yaml.safe_load(group_file("evaluation", "default").read_text())
    for key, own in (("annealing", Annealing()), ("estimate", Estimates()), ("gap", Refinement())):
        in_file, in_schema = dict(plain[key]), asdict(getattr(EvaluationSettings(), key))
        assert in_file == in_schema
        assert asdict(own) == {k: v for k, v in in_file.items() if k != "images"}
    amis = asdict(EvaluationSettings().amis)
    assert asdict(Amis()) == {k: v for k, v in amis.items() if k in asdict(Amis())}
    assert amis.keys() - asdict(Amis()).keys() == {"enabled", "images", "simulated", "fallback", "fallback_images"}
    names = plain["noise"].pop("estimators")
    assert estimators_by_name(names).keys() == set(names)
    schema = {k: v for k, v in asdict(EvaluationSettings()).items() if k != "noise"}
    adversarial = yaml.safe_load(group_file("evaluation", "adversarial").read_text())
    only = {"diversity", "observation", "parzen", "selection"}
    assert plain.keys() - adversarial.keys() == {"samples", "chunk", "latent", "gaps", "gradient_noise", "gap", "noise"}
    assert {k: v for k, v in plain.items() if k != "noise"} == {k: v for k, v in schema.items() if k not in only}
    assert adversarial == {k: schema[k] for k in adversarial} | {"quality": True, "pictures": 1}


def test_a_single_image_says_nothing_of_collapse(run: Path, evaluate: Evaluate) -> None:
    code, _, err = evaluate(f"run={run}", "evaluation.images=1")
    assert code == 0
    assert "collapse" not in err
    (record,) = result(run)["evaluations"].values()
    assert "test/active_units" not in record["metrics"]


def test_counts_are_those_of_the_images(run: Path, evaluate: Evaluate) -> None:
    code, out, _ = evaluate(f"run={run}", "evaluation.ais=true", "evaluation.bdmc=true", *CHEAP, "evaluation.images=3")
    assert code == 0
    ((label, record),) = result(run)["evaluations"].items()
    arrays = np.load(run / "per_example.npz")
    assert arrays[f"{label}/ais"].shape == arrays[f"{label}/bdmc_lower"].shape == (3,)
    assert record["protocol"]["annealing"]["images"] == 3
    assert "3 chains, 3 images" in out


def test_every_evaluation_ends_with_adaptive_importance_sampling(run: Path, evaluate: Evaluate) -> None:
    code, out, _ = evaluate(f"run={run}", "evaluation.amis.images=7", "evaluation.amis.simulated=4")
    assert code == 0
    ((label, record),) = result(run)["evaluations"].items()
    metrics, arrays = record["metrics"], np.load(run / "per_example.npz")
    values = {name: arrays[f"{label}/{name}"] for name in ("amis", "elbo", "log_likelihood", "gap_posterior")}
    assert values["amis"].shape == values["gap_posterior"].shape == (7,)
    np.testing.assert_array_equal(values["gap_posterior"], values["amis"] - values["elbo"][:7])
    assert metrics["test/gap_posterior"] == pytest.approx(values["gap_posterior"].mean())
    assert metrics["test/amis"] == pytest.approx(values["amis"].mean())
    assert metrics["test/amis_se"] == pytest.approx(values["amis"].std(ddof=1) / 7**0.5)
    assert metrics["test/amis_minus_is"] == pytest.approx((values["amis"] - values["log_likelihood"][:7]).mean())
    lower, upper = (arrays[f"{label}/amis_{end}"] for end in ("lower", "upper"))
    assert lower.shape == upper.shape == (4,)
    assert metrics["test/amis_gap"] == pytest.approx((upper - lower).mean())
    assert {"enabled", "simulated", "images"} & record["protocol"]["amis"].keys() == {"simulated", "images"}
    assert record["protocol"]["amis"]["images"] == 7
    assert record["protocol"]["amis"]["annealing"]["temperatures"] == 2500  # the fallback's
    assert "7 images, K=20" in out
    assert "compares models" in out
    assert "published protocol" in out


def test_amis_can_be_left_out(run: Path, evaluate: Evaluate) -> None:
    code, out, _ = evaluate(f"run={run}", "evaluation.amis=false")
    assert code == 0
    assert "test/amis" not in out
    assert "published" not in out
    ((label, record),) = result(run)["evaluations"].items()
    assert not any("amis" in name or name == "test/gap_posterior" for name in record["metrics"])
    assert "amis" not in record["protocol"]
    assert evaluate(f"run={run}", "evaluation.amis=true", "evaluation.amis.simulated=0")[0] == 0
    found = result(run)["evaluations"]
    (again,) = found.keys() - {label}
    assert found[again]["metrics"]["test/amis"] == pytest.approx(result(run)["metrics"]["test/amis"])
    assert "test/amis_lower" not in found[again]["metrics"]


def test_too_many_latent_dimensions_leave_amis_out(
    run: Path, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A default is left out in one line; a request is refused."""
    for module in ("run.preflight", "run.evaluate.likelihood", "evaluation.adaptive.amis"):
        monkeypatch.setattr(f"vaerun.{module}.MAX_LATENT_DIM", 1)
    code, out, err = evaluate(f"run={run}")
    assert code == 0
    assert "no test/amis: adaptive importance sampling supports up to 1 latent dimensions, and this model has 2" in err
    assert "test/amis" not in out
    code, _, err = evaluate(f"run={run}", "evaluation.amis=true")
    assert (code, err.count("\n")) == (2, 1)
    assert "supports up to 1 latent dimensions" in err


FAILING = ["evaluation.amis.samples=100", "evaluation.annealing.temperatures=4", "evaluation.annealing.chains=3"]


def test_failing_images_are_named_and_annealed(run: Path, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The annealed values are those of evaluation.ais for the same images; the others stay as they were."""
    from vaerun.run.evaluate import evaluator as module

    exact = module.adaptive_importance_sampling

    def failing(*arguments: Any, **options: Any) -> dict[str, Tensor]:
        values = exact(*arguments, **options)
        values["amis_pareto_k"][:] = 0.6
        values["amis_pareto_k"][[2, 5, 9]] = 0.8
        values["amis_ess"][:] = 10.0
        values["amis_ess"][5] = 60.0  # of 100: nearly equal weights, whatever their k-hat
        values["amis"][4] = -math.inf
        return values

    monkeypatch.setattr(module, "adaptive_importance_sampling", failing)
    annealed = [*FAILING, "evaluation.ais=true", "evaluation.annealing.images=12"]
    code, _, err = evaluate(f"run={run}", *annealed)
    assert code == 0
    assert "test/amis is not reliable for 3 of 12 images" in err
    assert "counted from 0: 2, 4, 9; for these it is that of annealed importance sampling" in err
    ((label, record),) = result(run)["evaluations"].items()
    assert record["details"]["amis_unreliable"] == [2, 4, 9]
    assert record["metrics"]["test/amis_fallback"] == 3 / 12
    arrays = np.load(run / "per_example.npz")
    amis, ais = arrays[f"{label}/amis"], arrays[f"{label}/ais"]
    np.testing.assert_allclose(amis[[2, 4, 9]], ais[[2, 4, 9]], rtol=1e-4)
    assert not np.isclose(np.delete(amis, [2, 4, 9]), np.delete(ais, [2, 4, 9]), rtol=1e-4).any()
    np.testing.assert_array_equal(arrays[f"{label}/amis_fallback"].nonzero()[0], [2, 4, 9])
    # More than a few are named only.
    code, _, err = evaluate(f"run={run}", *FAILING, "evaluation.amis.fallback_images=2")
    assert code == 0
    assert "counted from 0: 2, 4, 9; these are more than evaluation.amis.fallback_images=2" in err
    code, _, err = evaluate(f"run={run}", *FAILING, "evaluation.amis.fallback=null")
    assert code == 0
    assert "2, 4, 9; evaluation.amis.fallback=ais and evaluation.amis.fallback_images=3" in err
    assert "test/amis_fallback" not in list(result(run)["evaluations"].values())[-1]["metrics"]
