"""Sweeps as commands: checks before the first job starts; the jobs of the paper's comparison."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.runs.commands import TINY
from support.sweeps.sweeping import WORDS, Here, Launcher, Sweeping, planned

from vaerun.cli import main
from vaerun.sweep.plan import JobChecker
from vaerun.sweep.sweep import Sweep

pytestmark = pytest.mark.usefixtures("command_environment", "quick_commands")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# -- checked first --------------------------------------------------------------------------------------------------


def test_check_prints_the_plan_and_leaves_nothing(sweep: Sweeping, here: Here, tmp_path: Path) -> None:
    words = [*WORDS, "seed=range(4)"]
    code, out, err = here("--check", *words, "output_dir=new/sweep")
    assert (code, err) == (0, "")
    assert out.startswith("data: digits: 1298 training, ")
    assert out.splitlines()[1] == f"4 jobs in {tmp_path / 'new' / 'sweep'}"
    assert planned(out) == {f"seed={i}": "to run" for i in range(4)}
    assert out.splitlines()[-1] == "4 to run; at most 80 training steps"
    assert [p.name for p in tmp_path.iterdir()] == ["notes"]

    (tmp_path / "empty").mkdir()
    assert here("--check", *words, "output_dir=empty")[0] == 0
    assert list((tmp_path / "empty").iterdir()) == []

    sweep.does({1: "raise:oh"})
    assert here(*WORDS, "seed=0,1,2", "output_dir=sweep")[0] == 1
    path = next(sweep.folder.glob("**/*-seed2-*/result.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "interrupted"}))
    before, began = contents(sweep.folder), sweep.began()
    code, out, _ = here(*words, "output_dir=sweep", "--check")
    assert code == 0
    assert planned(out) == {
        "seed=0": "finished: skipped",
        "seed=1": "failed before: will rerun",
        "seed=2": "partly trained: will resume",
        "seed=3": "to run",
    }
    totals = "1 to run, 1 partly trained: will resume, 1 failed before: will rerun, 1 finished: skipped"
    assert out.splitlines()[-1] == f"{totals}; at most 60 training steps"
    assert sweep.began() == began
    assert contents(sweep.folder) == before


def test_one_that_cannot_work_stops_all(sweep: Sweeping, here: Here, tmp_path: Path) -> None:
    words = [*WORDS, "model.latent_dim=2,0", "trainer.batch_size=10,-1", "output_dir=sweep"]
    for more in ([], ["--check"]):
        code, out, err = here(*words, *more)
        assert (code, out) == (2, "")
        lines = err.splitlines()
        assert len(lines) == 4
        for line, bad in zip(lines, [(2, -1), (0, 10), (0, -1)], strict=False):
            assert line.startswith("vaerun: error: ")
            assert f"model.latent_dim={bad[0]} " in line
            assert f"trainer.batch_size={bad[1]}" in line
            assert "must be at least 1" in line
        assert lines[3] == "vaerun: error: 3 jobs of 4 cannot run (see above): nothing was started"
        assert sweep.began() == []
        assert [p.name for p in tmp_path.iterdir()] == ["notes"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model=vae,nonsense"], "unknown choice model=nonsense"),
        (["model=vae,vlae", "model.inference.step=1"], "'model.inference.step'. Did you mean model.inference.steps?"),
        (["model=vae,gan", "evaluation.sampels=5"], "'evaluation.sampels'. Did you mean evaluation.samples?"),
        (["model=gan,vae", "evaluation.observatoin.images=5"], "Did you mean evaluation.observation.images?"),
        (["model=gan,cgan", "evaluation.samples=5"], "evaluation.samples is not a key of this evaluation choice"),
        (["data=digits,npz"], "data.path must be given"),
        (["seed=0,1", "hydra.launcher.n_jobs=2"], "n_jobs"),
        (["seed=0,x"], "seed"),
    ],
)
def test_one_that_cannot_be_composed(here: Here, tmp_path: Path, words: list[str], expected: str) -> None:
    code, out, err = here("-m", *words, f"output_dir={tmp_path / 'sweep'}")
    assert (code, out) == (2, "")
    assert expected in err
    assert all(line.startswith("vaerun: error: ") for line in err.splitlines())
    assert not list(tmp_path.iterdir())


def test_each_job_has_the_keys_that_are_its_own(sweep: Sweeping, here: Here) -> None:
    """A VAE has no steps: it runs once, and neither its record nor its label has the key."""
    shared = ["-m", "seed=0", *TINY, "trainer.max_steps=20", "output_dir=sweep"]
    words = [*shared, "model=vae,vlae", "model.inference.steps=1,2"]
    line = "left out, for lack of such a key: model.inference.steps of model=vae"
    labels = ["model=vae", "model=vlae model.inference.steps=1", "model=vlae model.inference.steps=2"]
    code, out, _ = here("--check", *words)
    assert (code, list(planned(out)), line in out.splitlines()) == (0, labels, True)
    code, _, err = here(*words)
    assert (code, len(sweep.began()), line in err.splitlines()) == (0, 3, True)
    entries = json.loads((sweep.folder / "sweep.json").read_text())["jobs"]
    assert [e["left_out"] for e in entries] == [["model.inference.steps=1"], [], []]
    for entry in entries:
        job = json.loads((sweep.folder / entry["folder"] / ".job.json").read_text())
        assert job["words"] == entry["words"]
        assert ("model.inference.steps=" in " ".join(job["words"])) == ("model=vlae" in job["words"])
    assert {entry["config"]["sweep"]["table"]["rows"] for entry in entries} == {"model"}
    assert "3 finished: skipped" in here("--check", *words)[1]


def test_keys_that_the_default_model_lacks(here: Here) -> None:
    code, out, _ = here("--check", "-m", "model=gan,cgan", "evaluation.observation.images=5", "output_dir=sweep")
    assert (code, list(planned(out))) == (0, ["model=gan", "model=cgan"])
    assert "left out" not in out


def test_a_checkpoint_that_is_not_there(sweep: Sweeping, here: Here) -> None:
    code, out, err = here(*WORDS, "seed=0,1", "output_dir=sweep", "trainer.resume=/no/such.pt", "--check")
    assert (code, out) == (2, "")
    assert "/no/such.pt" in err
    assert sweep.began() == []


def test_a_signal_while_jobs_are_checked(sweep: Sweeping, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(self: JobChecker, *words: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(JobChecker, "check", interrupted)
    monkeypatch.setattr(sys, "argv", ["vaerun", *WORDS, "seed=0,1", "output_dir=new/sweep"])
    launcher = Launcher(main.main, tmp_path / "out")
    assert launcher.wait() == 130
    assert launcher.text() == "vaerun: stopped by SIGINT; run the same command again to resume\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes", "out"]


def test_a_folder_that_cannot_be_made(sweep: Sweeping, here: Here, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        code, out, err = here(*WORDS, "seed=0,1", f"output_dir={place}")
        assert (code, out) == (2, "")
        (line,) = err.splitlines()
        assert line.startswith("vaerun: error: ")
        assert str(tmp_path / "file") in line


def test_somebody_elses_folder(sweep: Sweeping, here: Here) -> None:
    sweep.folder.mkdir()
    (sweep.folder / "sweep.json").write_text('{"jobs": "mine"}')
    code, _, err = here(*WORDS, "seed=0,1", "output_dir=sweep")
    assert code == 2
    assert err.splitlines()[-1].startswith(f"vaerun: error: {sweep.folder / 'sweep.json'} is not a sweep plan")
    assert sweep.began() == []
    assert (sweep.folder / "sweep.json").read_text() == '{"jobs": "mine"}'


# -- the comparison of the paper ------------------------------------------------------------------------------------

CELLS = ["vae", *(f"{m}_t{t}" for m in ("sa_vae", "vae_hf", "vae_iaf", "vlae") for t in (1, 2, 4, 8))]


def batches(here: Here, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[list[str]]:
    """The overrides of each job of a sweep, without composing any."""
    batch_overrides: list[list[str]] = []

    def launch(self: Sweep, inner: Any, config: Any, context: Any, batch: Any, first: int) -> list[Any]:
        batch_overrides.extend(list(job) for job in batch)
        return []

    with monkeypatch.context() as patch:
        patch.setattr(Sweep, "launch", launch)
        code, _, err = here("-m", *words)
    assert code == 0, err
    return batch_overrides


def test_jobs_of_the_comparison(here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    job_overrides = batches(here, monkeypatch, "experiment=vlae_cifar10_quick")
    assert {"experiment=vlae_cifar10_quick" in words for words in job_overrides} == {True}
    pairs = [(words[0], words[1]) for words in job_overrides]
    assert len(set(pairs)) == len(pairs) == 51
    assert set(pairs) == {(f"cell={cell}", f"seed={seed}") for cell in CELLS for seed in range(3)}


def test_parts_of_the_comparison(here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    job_overrides = batches(here, monkeypatch, "experiment=vlae_cifar10_quick", "cell=vae,vlae_t4", "seed=7")
    assert [set(w) for w in job_overrides] == [
        {"cell=vae", "seed=7", "experiment=vlae_cifar10_quick"},
        {"cell=vlae_t4", "seed=7", "experiment=vlae_cifar10_quick"},
    ]
    # A model given explicitly is not a cell; the command printed for resuming can be run again.
    for more in ([], ["~hydra.sweeper.params.cell"]):
        words = ["experiment=vlae_cifar10_quick", "model=draw,vae", "trainer.epochs=1", *more]
        job_overrides = batches(here, monkeypatch, *words)
        assert len(job_overrides) == 6
        assert not any(word.startswith("cell=") for words in job_overrides for word in words)
