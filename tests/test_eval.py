"""`vaerun-eval` and the evaluations of a run: what is recorded, where, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support import TINY, records, state, tensorboard

from vaerun.cli import evaluate as command
from vaerun.evaluation.annealed import Annealing
from vaerun.evaluation.gaps import Refinement
from vaerun.plugins import group_file
from vaerun.run.build import named_estimators
from vaerun.settings import EvaluationSettings, fingerprint

SMALL = [*TINY, "evaluation.samples=30", "evaluation.images=12", "trainer.max_steps=20"]
CHEAP = """evaluation.annealing.temperatures=4 evaluation.annealing.chains=3 evaluation.annealing.leapfrog_steps=2
evaluation.annealing.images=5 evaluation.gap.window=5 evaluation.gap.max_steps=10 evaluation.gap.images=4
evaluation.noise.draws=3 evaluation.noise.images=6 evaluation.noise.samples=2""".split()  # noqa: SIM905
EVERYTHING = [f"evaluation.{k}=true" for k in ("ais", "bdmc", "gaps", "probe", "gradient_noise", "arrays")] + CHEAP

Evaluate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def evaluate(command_environment: None, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        return command.main([str(w) for w in words]), *capsys.readouterr()

    return call


@pytest.fixture
def run(here: Callable[..., tuple[int, str, str]], command_environment: None, tmp_path: Path) -> Path:
    """A finished run: a VAE with two latent dimensions on digits."""
    code, _, _ = here("model=vae", *SMALL, f"output_dir={tmp_path / 'run'}")
    assert code == 0
    return tmp_path / "run"


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_everything_is_recorded_and_nothing_replaced(run: Path, evaluate: Evaluate) -> None:
    before, arrays = result(run), dict(np.load(run / "per_example.npz"))
    kept = {p: v for p, v in state(run).items() if "checkpoints" in p or "figures" in p}
    code, out, _ = evaluate(f"run={run}", *EVERYTHING)
    assert code == 0
    after = result(run)
    (label,) = after["evaluations"]
    assert {k: v for k, v in after.items() if k != "evaluations"} == before
    assert {p: v for p, v in state(run).items() if p in kept} == kept

    found = after["evaluations"][label]
    metrics = found["metrics"]
    expected = {"log_likelihood", "effective_sample_size", "ais", "bdmc_lower", "bdmc_upper", "gap_approximation"}
    expected |= {"gap_amortisation", "active_units", "probe_accuracy", "gradient_noise/elbo_mc/encoder/variance"}
    assert {f"test/{name}" for name in expected} <= metrics.keys()
    assert found["command"][:2] == ["vaerun-eval", f"run={run}"]
    assert found["protocol"]["importance_samples"] == 30
    assert found["protocol"]["annealing"]["temperatures"] == 4
    # The same samples as the run's own evaluation: the same number.
    assert metrics["test/log_likelihood"] == before["metrics"]["test/log_likelihood"]
    assert metrics["test/gap_inference"] == pytest.approx(
        metrics["test/gap_approximation"] + metrics["test/gap_amortisation"]
    )

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

    # Figures, TensorBoard and metrics.jsonl.
    names = {"gaps", "gradient_variance", "gradient_snr", "kl_by_dimension", "aggregate_posterior", "posterior_means"}
    names |= {"data", "reconstructions"}
    assert len(found["details"]["kl_by_dimension"]) == 2
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
    ((label, found),) = result(run)["evaluations"].items()
    assert label.startswith("digits-validation-")
    assert found["protocol"]["importance_samples"] == 60
    assert "validation/log_likelihood" in found["metrics"]
    assert not any(name.startswith("test/") for name in found["metrics"])


def save(path: Path, shape: tuple[int, ...], labels: bool = True) -> Path:
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (60, *shape)).astype(np.uint8)
    arrays = {"train_images": images[:40], "test_images": images[40:]}
    if labels:
        arrays |= {"train_labels": np.arange(40) % 3, "test_labels": np.arange(20) % 3}
    np.savez(path, **arrays)
    return path


def test_another_data_set_of_the_same_shape(run: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    path = save(tmp_path / "noise.npz", (1, 8, 8))
    words = ["data=npz", f"data.path={path}", "data.validation=5"]
    code, out, _ = evaluate(f"run={run}", *words)
    assert code == 0
    ((label, found),) = result(run)["evaluations"].items()
    assert label.startswith("npz-test-")
    assert found["protocol"]["data"] == "npz"
    assert found["protocol"]["images"] == {"train": 35, "validation": 5, "test": 20}
    assert "trained on digits, evaluated on npz" in out
    # Noise is no digit.
    assert found["metrics"]["test/log_likelihood"] < result(run)["metrics"]["test/log_likelihood"] - 10
    path = save(tmp_path / "large.npz", (1, 9, 8))
    code, _, err = evaluate(f"run={run}", "data=npz", f"data.path={path}")
    assert (code, err.count("\n")) == (2, 1)
    assert "1x9x8" in err
    assert "1x8x8" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluation.sample=5"], "Did you mean evaluation.samples"),
        (["evaluation.samples=0"], "evaluation.samples must be at least 1"),
        (["evaluation.samples=many"], "evaluation.samples"),
        (["evaluation.split=tests"], "Did you mean test"),
        (["model.latent_dim=5"], "vaerun-eval cannot set 'model.latent_dim'"),
        (["evaluation"], "KEY=VALUE"),
        (["evaluation=default"], "cannot set 'evaluation'"),
        (["evaluation.ais=[1"], "cannot read the value"),
        (["data=digit"], "Did you mean digits"),
        (["data=../model/vae"], "there is no data="),
        (["data.binarize=fixed"], "train anew"),
        (["--samples=5"], "unknown flag"),
        (["run=elsewhere"], "name one run directory"),
        (["trainer.device=quantum"], "is no device"),
        (["trainer.device.x=1"], "trainer.device"),
        (["trainer.device=[cpu]"], "trainer.device"),
        (["evaluation.split=2001-99-99"], "cannot read the value"),
        (["data.source.x=1"], "data.source is no key"),
        (["data.path=x"], "data.path is no key of data=digits"),
        (["data.image_size=3"], "data.image_size is no key"),
        (["data=digits", "data.binarize=fixed"], "train anew"),
        (["evaluation.noise.estimators=elbo"], "write a list"),
        (["evaluation.gradient_noise=true", "evaluation.noise.estimators=[score_function/]"], "needs a value"),
        (["evaluation.annealing.temperatures=0", "evaluation.ais=true"], "evaluation.annealing.temperatures"),
        (["evaluation.gap.learning_rate=-1", "evaluation.gaps=true"], "evaluation.gap.learning_rate"),
        (["evaluation.gradient_noise=true", "evaluation.noise.estimators=[elbow]"], "Did you mean elbo"),
        (["evaluation.gradient_noise=true", "evaluation.noise.estimators=[stl/3]"], "has no option"),
        (["evaluation.gradient_noise=true", "evaluation.noise.estimators=[]"], "names no estimator"),
        (["evaluation.gradient_noise=true", "evaluation.noise.estimators=[score_function/x]"], "control_variate"),
        (["evaluation.gradient_noise=true", "evaluation.noise.estimators=[renyi/x]"], "renyi/x"),
    ],
)
def test_bad_input_is_one_line(run: Path, evaluate: Evaluate, words: list[str], said: str) -> None:
    before = state(run)
    code, out, err = evaluate(f"run={run}", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert state(run) == before


def test_a_folder_that_holds_no_finished_run(run: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    for folder, said in ((tmp_path / "absent", "holds no run"), (tmp_path, "holds no run")):
        code, _, err = evaluate(f"run={folder}")
        assert (code, err.count("\n")) == (2, 1)
        assert said in err
    record = result(run) | {"status": "interrupted"}
    (run / "result.json").write_text(json.dumps(record))
    code, _, err = evaluate(f"run={run}")
    assert (code, err.count("\n")) == (2, 1)
    assert "not finished" in err
    assert evaluate() == (2, evaluate()[1], "")
    assert "evaluation.samples" in evaluate("--help")[1]


def test_a_damaged_file_is_told_of_and_kept(run: Path, evaluate: Evaluate) -> None:
    (run / "per_example.npz").write_bytes(b"no archive")
    code, _, err = evaluate(f"run={run}")
    assert code == 2
    assert "per_example.npz" in err.splitlines()[-1]
    assert (run / "per_example.npz").read_bytes() == b"no archive"
    assert "evaluations" not in result(run)


def test_a_run_evaluates_what_it_is_told(
    here: Callable[..., tuple[int, str, str]], command_environment: None, tmp_path: Path
) -> None:
    code, out, _ = here("model=vlae", *SMALL, *EVERYTHING, f"output_dir={tmp_path / 'all'}")
    assert code == 0
    found = result(tmp_path / "all")
    arrays = dict(np.load(tmp_path / "all" / "per_example.npz"))
    for name in ("ais", "bdmc_lower", "gap_amortisation", "log_likelihood"):
        assert found["metrics"][f"test/{name}"] == pytest.approx(arrays[name].mean())
        assert f"test/{name} " in out
    assert found["metrics"]["test/gradient_noise/stl/decoder/variance"] > 0
    assert (tmp_path / "all" / "figures" / "gaps.png").exists()
    assert {"posterior_mean", "samples"} <= np.load(tmp_path / "all" / "arrays.npz").keys()


def test_what_a_model_cannot_have_is_refused_before_training(
    here: Callable[..., tuple[int, str, str]], command_environment: None, tmp_path: Path
) -> None:
    unlabelled = save(tmp_path / "plain.npz", (1, 8, 8), labels=False)
    for words, said in (
        (["model=ae", "evaluation.ais=true"], "needs a likelihood"),
        (["model=ae", "evaluation.gradient_noise=true"], "needs a likelihood"),
        (["evaluation.probe=true", "evaluation.split=train"], "fits to the training split"),
        (["model=vae_iaf", "evaluation.gradient_noise=true", "evaluation.noise.estimators=[elbo]"], "elbo_mc"),
        (["evaluation.noise.estimators=[elbow]"], "Did you mean elbo"),
        (["model=cvae", "evaluation.probe=true"], "given the label"),
        (["data=npz", f"data.path={unlabelled}", "evaluation.probe=true"], "needs labels"),
        (["data.validation=0", "evaluation.split=validation"], "no such images"),
    ):
        code, out, err = here(*words, *SMALL, f"output_dir={tmp_path / 'run'}")
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert said in err
        assert not (tmp_path / "run").exists() or not [p for p in (tmp_path / "run").iterdir() if p.name != ".lock"]


def test_a_plain_autoencoder_has_its_reconstruction_alone(
    here: Callable[..., tuple[int, str, str]], evaluate: Evaluate, tmp_path: Path
) -> None:
    folder = tmp_path / "ae"
    code, out, _ = here("model=ae", *SMALL, f"output_dir={folder}")
    assert code == 0
    assert "no likelihood" in out
    found = result(folder)
    assert found["protocol"]["units"].endswith("no likelihood")
    assert found["protocol"]["importance_samples"] is None
    assert found["metrics"]["test/reconstruction_error"] > 0
    assert evaluate(f"run={folder}", "evaluation.probe=true", "evaluation.arrays=true")[0] == 0
    ((label, again),) = result(folder)["evaluations"].items()
    assert 0 <= again["metrics"]["test/probe_accuracy"] <= 1
    arrays = dict(np.load(folder / f"arrays-{label}.npz"))
    assert "samples" not in arrays
    code, _, err = evaluate(f"run={folder}", "evaluation.bdmc=true")
    assert code == 2
    assert "needs a likelihood" in err


def test_unreliable_estimates_are_told_of(run: Path, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    from vaerun.run import evaluate as module

    monkeypatch.setattr(module, "unreliable", lambda tail: 0.06)
    _, _, err = evaluate(f"run={run}", "evaluation.samples=100")
    assert "not reliable for 6% of the images" in err
    monkeypatch.setattr(module, "unreliable", lambda tail: 0.05)
    assert "not reliable" not in evaluate(f"run={run}", "evaluation.samples=101")[2]


def test_a_stranger_in_the_way_is_waited_for(run: Path, evaluate: Evaluate) -> None:
    from vaerun.run.folder import claim

    with claim(run):
        code, _, err = evaluate(f"run={run}")
    assert (code, err.count("\n")) == (2, 1)
    assert "another run is working" in err
    shutil.rmtree(run / "figures")
    assert evaluate(f"run={run}")[0] == 0


def test_the_settings_defaults_are_those_of_the_functions() -> None:
    plain = yaml.safe_load(group_file("evaluation", "default").read_text())
    for key, own in (("annealing", Annealing()), ("gap", Refinement())):
        in_file, in_schema = dict(plain[key]), asdict(getattr(EvaluationSettings(), key))
        assert in_file == in_schema
        assert asdict(own) == {k: v for k, v in in_file.items() if k != "images"}
    names = plain["noise"].pop("estimators")
    assert named_estimators(names).keys() == set(names)
    assert {k: v for k, v in plain.items() if k != "noise"} == {
        k: v for k, v in asdict(EvaluationSettings()).items() if k != "noise"
    }


@pytest.mark.parametrize("name", ["figures", "metrics.jsonl", ".lock", "per_example.npz"])
def test_nothing_is_written_through_a_link(run: Path, evaluate: Evaluate, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    place = run / name
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    place.symlink_to(outside if name == "figures" else outside / "file")
    before = state(outside)
    code, _, err = evaluate(f"run={run}")
    assert (code, err.count("\n")) == (2, 1)
    assert "is a link" in err
    assert state(outside) == before


def with_config(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A stranger's configuration, with the fingerprint that belongs to it."""
    path = run / ".hydra" / "config.yaml"
    plain = yaml.safe_load(path.read_text())
    change(plain)
    path.write_text(yaml.safe_dump(plain))
    plain["data"]["root"] = None
    record = result(run)
    record["fingerprint"] = fingerprint(plain, record["protocol"]["data_sha256"])
    (run / "result.json").write_text(json.dumps(record))


def test_a_name_leads_nowhere(run: Path, evaluate: Evaluate) -> None:
    with_config(run, lambda plain: plain["data"].update(name="../../outside"))
    code, _, err = evaluate(f"run={run}")
    assert (code, err.count("\n")) == (2, 1)
    assert "name '../../outside'" in err


def test_no_interpolation_is_resolved(run: Path, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hush")
    path = run / ".hydra" / "config.yaml"
    # The escape hides the dollar from whoever looks at the text alone.
    path.write_text(path.read_text().replace("name: digits", 'name: "digits\\x24{oc.env:SECRET}"'))
    code, out, err = evaluate(f"run={run}")
    assert code == 2
    assert "no configuration that vaerun has written" in err
    assert "hush" not in out + err


@pytest.mark.parametrize("damage", ["timing", "units"])
def test_a_damaged_record_is_told_of_before_the_work(run: Path, evaluate: Evaluate, damage: str) -> None:
    record = result(run)
    if damage == "timing":
        record["timing"] = {"train_steps": "many"}
    else:
        del record["protocol"]["units"]
    (run / "result.json").write_text(json.dumps(record))
    code, _, err = evaluate(f"run={run}")
    assert (code, err.count("\n")) == (2, 1)
    assert "is damaged" in err


def test_a_single_image_says_nothing_of_collapse(run: Path, evaluate: Evaluate) -> None:
    code, _, err = evaluate(f"run={run}", "evaluation.images=1")
    assert code == 0
    assert "collapse" not in err
    (found,) = result(run)["evaluations"].values()
    assert "test/active_units" not in found["metrics"]


def test_counts_are_those_of_the_images(run: Path, evaluate: Evaluate) -> None:
    code, out, _ = evaluate(f"run={run}", "evaluation.ais=true", "evaluation.bdmc=true", *CHEAP, "evaluation.images=3")
    assert code == 0
    ((label, found),) = result(run)["evaluations"].items()
    arrays = np.load(run / "per_example.npz")
    assert arrays[f"{label}/ais"].shape == arrays[f"{label}/bdmc_lower"].shape == (3,)
    assert found["protocol"]["annealing"]["images"] == 3
    assert "3 chains, 3 images" in out
