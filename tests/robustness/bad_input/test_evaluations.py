"""Bad input of `vaerun-eval`: overrides, damaged records, malicious run directories."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.runs.commands import state
from support.runs.evaluating import SMALL, Evaluate, result, save

from vaerun.config.identity import fingerprint


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
        (["evaluation.ais=[1"], "cannot read the override 'evaluation.ais=[1'"),
        (["data=digit"], "Did you mean digits"),
        (["data=../model/vae"], "unknown choice data="),
        (["data.binarize=fixed"], "train again"),
        (["--samples=5"], "unknown flag"),
        (["run=elsewhere"], "name one run directory"),
        (["trainer.device=quantum"], "is not a device"),
        (["trainer.device.x=1"], "trainer.device"),
        (["trainer.device=[cpu]"], "trainer.device"),
        (["evaluation.split=2001-99-99"], "evaluation.split=2001-99-99: choose one of"),
        (["data.source.x=1"], "data.source is not a key"),
        (["data.path=x"], "data.path is not a key of data=digits"),
        (["data.image_size=3"], "data.image_size is not a key"),
        (["data=digits", "data.binarize=fixed"], "train again"),
        (["evaluation.noise.estimators=elbo"], "must be a list"),
        (["evaluation.gradient_noise=true", "evaluation.noise.estimators=[score_function/]"], "needs a value"),
        (["evaluation.arithmetic=[[1]]"], "evaluation.arithmetic must be a list of strings"),
        (["evaluation.arithmetic=[{a: 1}]"], "evaluation.arithmetic must be a list of strings"),
        (["evaluation.noise.estimators=[[elbo]]"], "evaluation.noise.estimators must be a list of strings"),
        (["evaluation.gap.tolerance=1e308"], "evaluation.gap.tolerance must be between"),
        (
            ["evaluation.annealing=1"],
            "is a group of keys: write evaluation.annealing.KEY=VALUE",
        ),
        (["evaluation.annealing=[1]"], "evaluation.annealing is a group of keys"),
        (["evaluation.gap=null"], "evaluation.gap is a group of keys"),
        (
            ["evaluation.amis=null"],
            "evaluation.amis is a group of keys: write evaluation.amis.KEY=VALUE, =true or =false",
        ),
        (["evaluation.amis=5"], "write evaluation.amis.KEY=VALUE, =true or =false"),
        (["evaluation.amis=false", "evaluation.amis.images=5"], "evaluation.amis.images=5 would have no effect"),
        (["evaluation.amis.images=0"], "evaluation.amis.images must be at least 1"),
        (["evaluation.amis.samples=0"], "evaluation.amis.samples must be"),
        (["evaluation.amis.fallback=hmc"], "evaluation.amis.fallback=hmc: choose one of null, ais"),
        (["evaluation.=1"], "unknown key 'evaluation.':"),
        (["evaluation..samples=3"], "unknown key 'evaluation..samples':"),
        (["evaluation.[0]=3"], "unknown key 'evaluation.[0]':"),
        (["seed.=1"], "unknown key 'seed.':"),
        (["evaluation.split=???"], "evaluation.split must be given: evaluation.split=VALUE"),
        (["seed=???"], "seed must be given"),
        (["data.root=???"], "data.root must be given"),
        (["evaluation.images=1:30"], "evaluation.images must be an integer or null, got '1:30'"),
        (["evaluation.images=!!int ''"], "evaluation.images"),
        (["evaluation.annealing.temperatures=0", "evaluation.ais=true"], "evaluation.annealing.temperatures"),
        (["evaluation.gap.learning_rate=-1", "evaluation.gaps=true"], "evaluation.gap.learning_rate"),
        (["evaluation.gradient_noise=true", "evaluation.noise.estimators=[elbow]"], "Did you mean elbo"),
        (["evaluation.gradient_noise=true", "evaluation.noise.estimators=[stl/3]"], "has no option"),
        (["evaluation.gradient_noise=true", "evaluation.noise.estimators=[]"], "estimators is empty"),
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
    for folder, said in ((tmp_path / "absent", "is not a run directory"), (tmp_path, "is not a run directory")):
        code, _, err = evaluate(f"run={folder}")
        assert (code, err.count("\n")) == (2, 1)
        assert said in err
    record = result(run) | {"status": "interrupted"}
    (run / "result.json").write_text(json.dumps(record))
    code, _, err = evaluate(f"run={run}")
    assert (code, err.count("\n")) == (2, 1)
    assert "not finished" in err
    assert "evaluation.samples" in evaluate("--help")[1]


def test_a_damaged_file_is_told_of_and_kept(run: Path, evaluate: Evaluate) -> None:
    (run / "per_example.npz").write_bytes(b"no archive")
    code, _, err = evaluate(f"run={run}")
    assert code == 2
    assert "per_example.npz" in err.splitlines()[-1]
    assert (run / "per_example.npz").read_bytes() == b"no archive"
    assert "evaluations" not in result(run)


def test_what_a_model_cannot_have_is_refused_before_training(
    here: Callable[..., tuple[int, str, str]], command_environment: None, tmp_path: Path
) -> None:
    unlabelled = save(tmp_path / "plain.npz", (1, 8, 8), labels=False)
    for words, said in (
        (["model=ae", "evaluation.ais=true"], "needs a likelihood"),
        (["model=ae", "evaluation.gradient_noise=true"], "needs a likelihood"),
        (["model=ae", "evaluation.amis=true"], "needs a likelihood"),
        (["evaluation.probe=true", "evaluation.split=train"], "fits to the training split"),
        (["model=vae_iaf", "evaluation.gradient_noise=true", "evaluation.noise.estimators=[elbo]"], "elbo_mc"),
        (["evaluation.noise.estimators=[elbow]"], "Did you mean elbo"),
        (["model=cvae", "evaluation.probe=true"], "given the label"),
        (["data=npz", f"data.path={unlabelled}", "evaluation.probe=true"], "needs labels"),
        (["data.validation=0", "evaluation.split=validation"], "has no images in this split"),
    ):
        code, out, err = here(*words, *SMALL, f"output_dir={tmp_path / 'run'}")
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert said in err
        assert not (tmp_path / "run").exists() or not [p for p in (tmp_path / "run").iterdir() if p.name != ".lock"]


def test_a_stranger_in_the_way_is_waited_for(run: Path, evaluate: Evaluate) -> None:
    from vaerun.storage.run_dir import lock_run_dir

    with lock_run_dir(run):
        code, _, err = evaluate(f"run={run}")
    assert (code, err.count("\n")) == (2, 1)
    assert "another run is using" in err
    shutil.rmtree(run / "figures")
    assert evaluate(f"run={run}")[0] == 0


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


def test_figures_that_cannot_be_put_anywhere(run: Path, evaluate: Evaluate) -> None:
    """Reported before the work, not after it."""
    assert evaluate(f"run={run}")[0] == 0
    (own,) = (path for path in (run / "figures").iterdir() if path.is_dir())
    for place in (own, run / "figures"):
        shutil.rmtree(place)
        place.write_text("mine")
        before = state(run)
        code, out, err = evaluate(f"run={run}")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"{place} is not a directory" in err
        assert state(run) == before


@pytest.mark.parametrize("second", ["9" * 10, "9" * 230])
def test_events_of_no_time(run: Path, evaluate: Evaluate, second: str) -> None:
    """The next file's name would be too long, or come before it."""
    (run / f"events.out.tfevents.{second}").touch()
    code, _, err = evaluate(f"run={run}")
    assert code == 0, err


def with_config(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """An untrusted configuration with a matching fingerprint."""
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
    # The escape hides the dollar sign from a check of the text alone.
    path.write_text(path.read_text().replace("name: digits", 'name: "digits\\x24{oc.env:SECRET}"'))
    code, out, err = evaluate(f"run={run}")
    assert code == 2
    assert "was not written by vaerun" in err
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


def test_no_values_are_kept_without_their_record(
    run: Path, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, record: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    before = (run / "per_example.npz").read_bytes()
    monkeypatch.setattr("vaerun.run.result.write_result", full)
    code, _, err = evaluate(f"run={run}", "seed=3")
    assert code == 1
    assert "No space left" in err.splitlines()[-1]
    assert (run / "per_example.npz").read_bytes() == before
    assert "evaluations" not in result(run)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_checkpoint_is_told_of(run: Path, evaluate: Evaluate, damage: str) -> None:
    path = run / "checkpoints" / "best.pt"
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    code, _, err = evaluate(f"run={run}")
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot use" in err
    assert "best.pt" in err


@pytest.mark.parametrize("words", [[], ["evaluation.samples=5"], ["run="]])
def test_the_run_is_named_in_one_line(evaluate: Evaluate, words: list[str]) -> None:
    line = "vaerun-eval: error: name one run directory: vaerun-eval run=DIR (see vaerun-eval --help)\n"
    assert evaluate(*words) == (2, "", line)
