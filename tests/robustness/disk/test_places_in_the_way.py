"""Files or directories in the way of what a run writes are reported before any work."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from support.runs.adversarial_runs import Command
from support.runs.commands import state
from support.runs.evaluating import SMALL, Evaluate, result

pytestmark = pytest.mark.usefixtures("command_environment")
FOLDERS = (".hydra", "checkpoints", "figures")
FILES = ("run.log", "metrics.jsonl", "per_example.npz", "arrays.npz", ".hydra/config.yaml", "checkpoints/last.pt",
         "figures/samples.png")  # fmt: skip


def begun(run: Path) -> list[str]:
    """The overrides of a run in this directory that was stopped early."""
    (run / "result.json").write_text(json.dumps(result(run) | {"status": "interrupted"}))
    shutil.rmtree(run / "checkpoints")
    return ["model=vae", *SMALL, f"output_dir={run}"]


def remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    place.parent.mkdir(exist_ok=True)


def assert_refused(here: Command, words: list[str], run: Path, *parts: str) -> None:
    before = state(run)
    code, out, err = here(*words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    for part in (*parts, "move it away"):
        assert part in err
    assert state(run) == before


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("kind", ["file", "link to nothing"])
def test_no_folder(here: Command, run: Path, name: str, kind: str) -> None:
    words, place = begun(run), run / name
    remove(place)
    if kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to("nowhere")
    assert_refused(here, words, run, f"{place} is not a directory")


@pytest.mark.parametrize("name", FILES)
def test_no_file(here: Command, run: Path, name: str) -> None:
    words, place = begun(run), run / name
    remove(place)
    place.mkdir()
    assert_refused(here, words, run, f"{place} is not a file")


def test_a_pipe(here: Command, run: Path) -> None:
    """Opening it would wait for a reader forever."""
    words, place = begun(run), run / "metrics.jsonl"
    place.unlink()
    os.mkfifo(place)
    assert_refused(here, words, run, f"{place} is not a file")


def test_a_new_run(here: Command, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".hydra").write_text("mine")
    words = ["model=vae", *SMALL, f"output_dir={tmp_path / 'new'}"]
    assert_refused(here, words, tmp_path / "new", ".hydra is not a directory")


def test_a_job_of_a_sweep(here: Command, run: Path) -> None:
    """Rejected when all jobs are checked."""
    words = begun(run)
    (run / "run.log").unlink()
    (run / "run.log").mkdir()
    assert_refused(here, ["--check", *words], run, "run.log is not a file")


def test_a_finished_run_is_shown(here: Command, run: Path) -> None:
    """It writes nothing."""
    shutil.rmtree(run / "figures")
    (run / "figures").write_text("mine")
    code, out, _ = here("model=vae", *SMALL, f"output_dir={run}")
    assert code == 0
    assert "already finished" in out


def test_an_evaluations_arrays(run: Path, evaluate: Evaluate) -> None:
    words = [f"run={run}", "evaluation.arrays=true"]
    assert evaluate(*words)[0] == 0
    (arrays,) = run.glob("arrays-*.npz")
    arrays.unlink()
    arrays.mkdir()
    before = state(run)
    code, out, err = evaluate(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{arrays} is not a file" in err
    assert state(run) == before


def sweep(folder: Path) -> list[str]:
    return ["-m", "model=vae", *SMALL, "seed=1,2", f"hydra.sweep.dir={folder}"]


@pytest.mark.parametrize("name", ["sweep.json", "multirun.yaml", "table.md", "table.png"])
def test_no_file_of_a_sweep(here: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert_refused(here, sweep(tmp_path), tmp_path, f"{tmp_path / name} is not a file")


def test_no_folder_of_a_sweep(here: Command, tmp_path: Path) -> None:
    """The events directory, the sweep directory itself, and its parent."""
    (tmp_path / "table").write_text("mine")
    assert_refused(here, sweep(tmp_path), tmp_path, f"{tmp_path / 'table'} is not a directory")
    for folder in (tmp_path / "table", tmp_path / "table" / "a" / "b"):
        assert_refused(here, sweep(folder), tmp_path, f"{tmp_path / 'table'} is not a directory")
