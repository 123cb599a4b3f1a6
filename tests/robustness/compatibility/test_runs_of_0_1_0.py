"""Run directories of version 0.1.0 are opened, evaluated, gone on with and tabulated as they were then (README.md)."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import shutil
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vaerun

pytestmark = pytest.mark.usefixtures("command_environment")

HERE = Path(__file__).parent
RUNS, EXPECTED = HERE / "runs", HERE / "expected"
PARAMETERS: dict[str, str] = json.loads((EXPECTED / "parameters.json").read_text())
FINISHED = [name for name in PARAMETERS if name != "interrupted"]
Command = Callable[..., tuple[int, str, str]]


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return vaerun.load_run(folder).model.state_dict()


def digest(state: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name, value in sorted(state.items()):
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()


def files(folder: Path) -> dict[str, bytes]:
    """What a run has left, by name; locks, which hold nothing, aside."""
    found = [p for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", ".sweep.lock")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def words(folder: Path, place: Path) -> list[str]:
    """The command that made the run, for another place."""
    own = [word for word in result(folder)["command"][1:] if not word.startswith("output_dir=")]
    return [*own, f"output_dir={place}"]


def of_then(found: dict[str, Any]) -> dict[str, Any]:
    """Without evaluation.amis, which 0.1.0 did not have: later versions may add numbers, not change them."""
    return {k: v for k, v in found.items() if "amis" not in k and "gap_posterior" not in k}


def assert_same_numbers(found: dict[str, float], expected: dict[str, float], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=tolerance, abs=1e-7), name


@pytest.fixture(autouse=True)
def without_annealing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fallback of evaluation.amis takes seconds even for such models."""
    monkeypatch.setattr("vaerun.run.evaluate.evaluator.PARETO_K_LIMIT", math.inf)


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a run directory, which may be changed."""
    return lambda name: Path(shutil.copytree(RUNS / name, tmp_path / name))


@pytest.fixture
def tabulate(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What vaerun-table prints."""
    (script,) = entry_points(group="console_scripts", name="vaerun-table")

    def call(*given: object) -> str:
        capsys.readouterr()
        code, (out, err) = script.load()([str(word) for word in given]), capsys.readouterr()
        assert (code, err) == (0, "")
        return out

    return call


@pytest.mark.parametrize("name", PARAMETERS)
def test_opens(name: str, copy: Callable[[str], Path]) -> None:
    folder = copy(name)
    before = files(folder)
    run = vaerun.load_run(folder)  # refused where the settings' fingerprint is not the recorded one
    assert run.result == result(RUNS / name)
    assert (run.config.model.name, run.config.seed) == (run.result["model"], run.result["seed"])
    assert digest(run.model.state_dict()) == PARAMETERS[name]
    assert run.data.sha256 == run.result["protocol"]["data_sha256"]
    assert files(folder) == before


def test_settings_that_are_not_the_runs_are_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("vae")
    config = folder / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("\nseed: 0\n", "\nseed: 1\n"))
    with pytest.raises(vaerun.InputError, match="is not the configuration of"):
        vaerun.load_run(folder)


@pytest.mark.parametrize("name", ["vae", "infogan"])
def test_the_same_command_shows_the_result(name: str, copy: Callable[[str], Path], here: Command) -> None:
    """The command composed today is the run of then: its fingerprint is the recorded one."""
    folder = copy(name)
    before = files(folder)
    code, out, err = here(*words(folder, folder))
    assert (code, err) == (0, "")
    assert out.startswith(f"already finished: {folder}\n")
    assert files(folder) == before


@pytest.mark.parametrize("name", ["vae", "vlae", "infogan"])
def test_is_evaluated_again(name: str, copy: Callable[[str], Path], evaluate: Command) -> None:
    """With the run's own K, images and seed: the run's own numbers."""
    folder = copy(name)
    before = result(folder)
    code, _, _ = evaluate(f"run={folder}")
    assert code == 0
    evaluations = result(folder)["evaluations"]
    (label,) = evaluations.keys() - before.get("evaluations", {}).keys()
    expected = {k: v for k, v in before["metrics"].items() if k.startswith("test/")}
    assert "test/log_likelihood" in expected or name == "infogan"
    assert ("test/amis" in evaluations[label]["metrics"]) == (name != "infogan")
    assert_same_numbers(of_then(evaluations[label]["metrics"]), expected, 1e-6)
    assert {k: v for k, v in evaluations.items() if k != label} == before.get("evaluations", {})
    with np.load(folder / "per_example.npz") as found, np.load(RUNS / name / "per_example.npz") as old:
        for key in old.files:
            np.testing.assert_array_equal(found[key], old[key])
            if "/" not in key:
                np.testing.assert_allclose(found[f"{label}/{key}"], old[key], rtol=1e-4, atol=1e-4)


def test_an_evaluation_of_then_is_the_same_now(copy: Callable[[str], Path], evaluate: Command) -> None:
    """The same words give it the same name, and the same numbers."""
    folder = copy("vlae")
    ((label, before),) = result(folder)["evaluations"].items()
    code, out, _ = evaluate(f"run={folder}", *before["command"][2:])
    assert code == 0
    assert out.endswith(f"as {label}\n")
    ((again, after),) = result(folder)["evaluations"].items()
    assert again == label
    assert of_then(after["protocol"]) == before["protocol"]
    assert_same_numbers(of_then(after["metrics"]), before["metrics"], 1e-6)


def test_goes_on(copy: Callable[[str], Path], tmp_path: Path, here: Command) -> None:
    """What was stopped then ends as the run that was not."""
    folder, whole = copy("interrupted"), RUNS / "whole"
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    assert 0 < state["progress"]["step"] < 400
    code, _, err = here(*words(folder, folder))
    assert code == 0, err
    found, expected = result(folder), result(whole)
    assert found["fingerprint"] == expected["fingerprint"]
    assert_same_numbers(of_then(found["metrics"]), expected["metrics"], 1e-4)
    assert of_then(found["protocol"]) == expected["protocol"]
    after, then = parameters(folder), parameters(whole)
    assert after.keys() == then.keys()
    for name, value in then.items():
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-5)
    lines = [
        [of_then(json.loads(line)) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (folder, whole)
    ]
    steps = [[(record["step"], sorted(record)) for record in some] for some in lines]
    assert steps[0] == steps[1]
    # Another torch or processor may round otherwise. Where the whole run has the bits of then, so has this one.
    code, _, err = here(*words(whole, tmp_path / "anew"))
    assert code == 0, err
    if digest(parameters(tmp_path / "anew")) == PARAMETERS["whole"]:
        assert digest(after) == PARAMETERS["whole"]
        assert lines[0] == lines[1]


def sweep_of(seeds: str, folder: Path) -> list[str]:
    """The sweep's command with these seeds."""
    command = json.loads((RUNS / "sweep" / "sweep.json").read_text())["command"][1:]
    own = [word for word in command if not word.startswith(("seed=", "output_dir="))]
    return [*own, f"seed={seeds}", f"output_dir={folder}"]


def test_finished_jobs_of_a_sweep_are_known(copy: Callable[[str], Path], here: Command) -> None:
    folder = copy("sweep")
    before = files(folder)
    code, out, err = here("--check", *sweep_of("0,1,2", folder))
    assert code == 0, err
    assert len(re.findall(r"^.*\bfinished\b.*seed=[01]\b|^.*seed=[01]\b.*\bfinished\b", out, re.MULTILINE)) == 4, out
    assert files(folder) == before


@pytest.mark.slow
def test_a_sweep_takes_more_seeds(copy: Callable[[str], Path], here: Command) -> None:
    folder = copy("sweep")
    before = files(folder)
    code, out, err = here(*sweep_of("0,1,2", folder))
    assert code == 0, err
    assert "(n=3)" in out
    after = files(folder)
    assert all(after[name] == content for name, content in before.items() if name.startswith("digits/"))
    new = [result((folder / name).parent) for name in after.keys() - before.keys() if name.endswith("/result.json")]
    assert sorted((r["model"], r["seed"], r["status"]) for r in new) == [("vae", 2, "ok"), ("vlae", 2, "ok")]
    assert len(json.loads((folder / "sweep.json").read_text())["jobs"]) == 6


def numbers(text: str) -> list[str]:
    """Of a table, line by line; words may change, and a footnote on k-hat has been added."""
    return re.findall(r"-?\d+\.\d+", "\n".join(line for line in text.splitlines() if "k-hat" not in line))


def test_is_tabulated(copy: Callable[[str], Path], tabulate: Callable[..., str]) -> None:
    found = tabulate(copy("sweep"))
    expected = (EXPECTED / "sweep.md").read_text()
    assert numbers(found) == numbers(expected) != []


def test_is_listed(tmp_path: Path, tabulate: Callable[..., str]) -> None:
    """Columns may be added."""
    folder = shutil.copytree(RUNS, tmp_path / "runs")
    found = list(csv.DictReader(io.StringIO(tabulate(folder, "--list", "--format", "csv"))))
    expected = list(csv.DictReader(io.StringIO((EXPECTED / "list.csv").read_text())))
    assert [{k: row[k] for k in old} for row, old in zip(found, expected, strict=True)] == expected
