"""A run whose data are somewhere else, are others, or are gone: the model opens, and evaluations say what they need."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from support.runs.adversarial_runs import CGAN, GAN, INFOGAN
from support.runs.evaluating import SMALL, Evaluate, result, save

import vaerun
from vaerun.config.identity import fingerprint
from vaerun.errors import InputError
from vaerun.run import load
from vaerun.storage.checkpoint import load_checkpoint

RECORDED = "/nowhere/data.npz"  # the data are no longer there


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for the module, so that its run is trained once."""
    return save(tmp_path_factory.mktemp("moved") / "data.npz", (1, 8, 8))


@pytest.fixture
def new(data_file: Path, tmp_path: Path) -> Path:
    """Where the data are now."""
    (tmp_path / "new").mkdir()
    return Path(shutil.copy(data_file, tmp_path / "new"))


@pytest.fixture
def moved(copied: Callable[..., Path], command_environment: None, data_file: Path) -> Path:
    """A run on labelled images, which are no longer where they were."""
    run = copied("model=cvae", "data=npz", f"data.path={data_file}", *SMALL, "trainer.batch_size=16")
    record_path(run, RECORDED)
    return run


def record_path(run: Path, path: str) -> None:
    config = run / ".hydra" / "config.yaml"
    plain = yaml.safe_load(config.read_text())
    plain["data"]["path"] = plain["data"]["source"]["path"] = path
    config.write_text(yaml.safe_dump(plain))


def change_record(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    record = result(run)
    change(record)
    (run / "result.json").write_text(json.dumps(record))


# -- the model without its data --------------------------------------------------------------------------------------

MODELS = {
    "vae": ("model=vae", *SMALL),
    "bernoulli": ("model=vae", "model.likelihood=bernoulli", "data.binarize=fixed", *SMALL),
    "logit": ("model=vae", "data.dequantize=true", "data.logit=true", *SMALL),
    "cvae": ("model=cvae", "model.conditional_prior=true", *SMALL),
    "gan": GAN,
    "cgan": CGAN,
    "infogan": INFOGAN,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_opens_without_its_data(
    name: str, copied: Callable[..., Path], command_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(*MODELS[name])
    state = load_checkpoint(folder / "checkpoints" / "best.pt")["objective"]
    with monkeypatch.context() as patch:
        patch.setattr(load, "build_data", lambda *_: pytest.fail("the data were read"))
        run = vaerun.load_run(folder)
        found = run.model.state_dict()
        c = torch.eye(run.model.classes) if run.model.classes else None
        assert run.model.sample(10, c).shape == (10, 1, 8, 8)
    assert not run.model.training
    for key, value in found.items():
        torch.testing.assert_close(value, state[f"model.{key}"], rtol=0, atol=0)
    # Runs of version 0.1.0 do not record the images: their model is built from the data, and is the same.
    change_record(folder, lambda record: record.pop("dataset"))
    for key, value in vaerun.load_run(folder).model.state_dict().items():
        torch.testing.assert_close(value, found[key], rtol=0, atol=0)


def test_images_that_are_passed_in_are_evaluated(moved: Path, new: Path) -> None:
    there, gone = vaerun.load_run(moved, data_path=str(new)), vaerun.load_run(moved)
    batch = there.data.test.batch(0, 12)
    with pytest.raises(InputError, match=r"no longer at /nowhere/data.npz: give their place by data.path=NEW"):
        gone.data  # noqa: B018
    with np.load(new) as arrays:
        x = torch.from_numpy(arrays["test_images"][:12] / 255).float()
    found = vaerun.log_likelihood(gone.model, x, torch.eye(3)[[0, 1, 2] * 4], samples=30)
    assert torch.equal(found, vaerun.log_likelihood(there.model, batch.x, batch.c, samples=30))
    with np.load(moved / "per_example.npz") as arrays:
        np.testing.assert_allclose(found, arrays["log_likelihood"], rtol=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("shape", [1, 8], "is damaged"),
        ("shape", [1, 8, -8], "is damaged"),
        ("shape", [1, 8, True], "is damaged"),
        ("shape", ["1", 8, 8], "is damaged"),
        ("shape", 64, "is damaged"),
        ("binary", "yes", "is damaged"),
        ("images", {"train": 0}, "is damaged"),
        ("images", [], "is damaged"),
        ("classes", None, "is damaged"),
        ("classes", {}, "cannot use"),
        ("classes", {"a": 1, "b": 1}, "cannot use"),
        ("shape", [1, 8, 9], "cannot use"),
        ("shape", [1, 10**7, 10**7], "far larger than the parameters"),
        ("shape", [2**62, 2**62, 2**62], "far larger than the parameters"),
    ],
)
def test_a_damaged_record_of_the_images_is_one_line(moved: Path, key: str, value: Any, said: str) -> None:
    change_record(moved, lambda record: record["dataset"].update({key: value}))
    with pytest.raises(InputError, match=said) as error:
        vaerun.load_run(moved).model  # noqa: B018
    assert "\n" not in str(error.value)
    change_record(moved, lambda record: record.update(dataset=value))
    with pytest.raises(InputError, match=r"is damaged|no longer at"):
        vaerun.load_run(moved).model  # noqa: B018


# -- evaluations of data that moved ----------------------------------------------------------------------------------


def test_data_that_moved_are_the_same_data(moved: Path, new: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    words = ["evaluation.samples=31", "evaluation.amis=false"]
    code, out, err = evaluate(f"run={moved}", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    # What it says to do works.
    advice = re.search(r"data\.path=NEW", err)
    assert advice is not None
    assert evaluate(f"run={moved}", advice[0].replace("NEW", str(new)), *words)[0] == 0
    ((label, record),) = result(moved)["evaluations"].items()
    assert "data_changed" not in record["protocol"]
    # Nor does the name of the evaluation depend on the place, or on naming the run's data set again.
    elsewhere = shutil.move(new, tmp_path / "there.npz")
    assert evaluate(f"run={moved}", "data=npz", f"data.path={elsewhere}", *words)[0] == 0
    ((again, other),) = result(moved)["evaluations"].items()
    assert (again, other["metrics"]) == (label, record["metrics"])


@pytest.mark.parametrize("dataset", [True, False], ids=["now", "0.1.0"])
def test_other_data_are_evaluated_on_purpose_only(
    moved: Path, new: Path, evaluate: Evaluate, tmp_path: Path, dataset: bool
) -> None:
    if not dataset:
        change_record(moved, lambda record: record.pop("dataset"))
    with np.load(new) as arrays:
        changed = {k: v[::-1] if k.endswith("images") else v + 4 for k, v in arrays.items()}
        np.savez(tmp_path / "other.npz", **changed)
    words = [f"run={moved}", f"data.path={tmp_path / 'other.npz'}", "evaluation.amis=false"]
    before = result(moved)
    for more in ([], ["data.validation=5"]):
        code, out, err = evaluate(*words, *more)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "used other data" in err
    assert result(moved) == before
    advice = re.search(r"data\.changed=true", err)
    assert advice is not None
    code, out, err = evaluate(*words, advice[0])
    assert code == 0
    assert "evaluated on other data: npz" in out
    classes = "trained on the classes 0, 1, 2, and those of npz are 4, 5, 6: they are taken to correspond in this order"
    assert (classes in err) == dataset  # recorded or not
    assert evaluate(f"run={moved}", f"data.path={new}", "data.changed=true", "evaluation.amis=false")[0] == 0
    changed, own = (record["protocol"] for record in result(moved)["evaluations"].values())
    recorded = before["protocol"]["data_sha256"]
    assert changed["data_changed"] is True
    assert changed["data_sha256"] != recorded
    assert "data_changed" not in own
    assert own["data_sha256"] == recorded
    other = vaerun.load_run(moved, data_path=str(tmp_path / "other.npz"), data_changed=True).data
    assert other.sha256 == changed["data_sha256"]


def test_whether_data_changed_is_yes_or_no(moved: Path, new: Path, evaluate: Evaluate) -> None:
    for word, said in (("data.changed=1", "data.changed must be true or false"), ("data.path=[1]", "data.path")):
        code, out, err = evaluate(f"run={moved}", f"data.path={new}", word)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert said in err


def test_images_of_another_shape_are_refused(moved: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    path = save(tmp_path / "wide.npz", (1, 8, 9))
    code, _, err = evaluate(f"run={moved}", f"data.path={path}", "data.changed=true")
    assert (code, err.count("\n")) == (2, 1)
    assert "images of 1x8x9, but the run's model needs 1x8x8" in err


# -- relative paths --------------------------------------------------------------------------------------------------


def test_relative_paths_are_recorded_absolute(
    here: Callable[..., tuple[int, str, str]],
    evaluate: Evaluate,
    new: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["model=vae", "data=npz", *SMALL, "trainer.batch_size=16", "output_dir=run"]
    assert here(*words, "data.path=new/data.npz")[0] == 0
    config = yaml.safe_load(Path("run/.hydra/config.yaml").read_text())
    assert config["data"]["path"] == config["data"]["source"]["path"] == str(new)
    recorded = result(Path("run"))
    assert recorded["fingerprint"] == fingerprint(config, recorded["protocol"]["data_sha256"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate("run=../run", "seed=3")[0] == 0
    # The same run, however its data are named.
    monkeypatch.chdir(tmp_path)
    code, out, _ = here(*words, f"data.path={new}")
    assert code == 0
    assert out.startswith("already finished")


def test_the_place_of_prepared_data_is_kept(
    here: Callable[..., tuple[int, str, str]], evaluate: Evaluate, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (new.parent / "mnist.npz").write_bytes(new.read_bytes())
    monkeypatch.chdir(new.parent.parent)
    words = ["model=vae", "data=mnist", "data.validation=5", "data.root=new", *SMALL, "trainer.batch_size=16"]
    assert here(*words, "output_dir=run")[0] == 0
    monkeypatch.chdir(new.parent)
    assert evaluate("run=../run", "seed=3")[0] == 0
    (new.parent / "there").mkdir()
    (new.parent / "mnist.npz").rename(new.parent / "there" / "mnist.npz")
    assert evaluate("run=../run", "seed=4", "data.root=there")[0] == 0
    assert vaerun.load_run("../run", data_root="there").data.name == "mnist"


def test_relative_paths_of_earlier_versions(
    moved: Path, new: Path, evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_path(moved, "data.npz")
    monkeypatch.chdir(tmp_path)
    hydra = moved / ".hydra" / "hydra.yaml"
    for cwd, code in ((new.parent, 0), (tmp_path, 2), (7, 2)):
        hydra.write_text(yaml.safe_dump({"hydra": {"runtime": {"cwd": cwd if cwd == 7 else str(cwd)}}}))
        found, _, err = evaluate(f"run={moved}", "evaluation.amis=false")
        assert found == code, err
    hydra.unlink()
    code, _, err = evaluate(f"run={moved}", "evaluation.amis=false")
    assert (code, err.count("\n")) == (2, 1)
    assert "no longer at data.npz: give their place by data.path=NEW" in err
    monkeypatch.chdir(new.parent)
    assert evaluate(f"run={moved}", "evaluation.amis=false")[0] == 0
