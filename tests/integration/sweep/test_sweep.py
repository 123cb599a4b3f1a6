"""Sweeps as commands: what is planned, how failures are reported, what re-running the command does."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from support.sweeps.sweeping import WORDS, Here, Launcher, Sweeping, failures, holding, planned, printed_command

import vaerun.report
from vaerun.cli import main
from vaerun.errors import RunError
from vaerun.sweep import launcher as launch
from vaerun.sweep.sweep import Sweep

pytestmark = pytest.mark.usefixtures("command_environment", "quick_commands")


# -- failing and resuming -------------------------------------------------------------------------------------------


def test_failures_are_listed_and_run_again(sweep: Sweeping, here: Here) -> None:
    sweep.does({1: "raise:it\tdiverged \x1b[1m", 2: "killed", 3: "refused:bring them"})
    words = [*WORDS, "seed=range(5)", "sweep.jobs=2", "output_dir=sweep"]
    code, out, err = here(*words)
    assert (code, out) == (1, "table of sweep\n")
    assert planned(err) == {f"seed={i}": "to run" for i in range(5)}
    assert "5 to run; at most 100 training steps" in err
    assert failures(err) == {
        "seed=1": "it diverged  [1m",
        "seed=2": "killed by SIGKILL (manually, or by the system when memory ran out)",
        "seed=3": "the data are not there: bring them",
    }
    assert f"2 of 5 jobs done in {sweep.folder}" in err
    assert sweep.status() == {0: "ok", 1: "failed", 2: "failed", 3: "failed", 4: "ok"}
    assert sweep.results()[2]["error"] == failures(err)["seed=2"]
    for seed in (1, 2, 3):
        folder = Path(next(x.strip() for x in err.splitlines() if x.startswith("    ") and f"-seed{seed}-" in x))
        assert json.loads((folder / "result.json").read_text())["seed"] == seed
    assert "it\tdiverged" in (next(sweep.folder.glob("**/*-seed1-*")) / "job.log").read_text()

    command = printed_command(err)
    assert command == words
    sweep.forget()
    sweep.does({2: "killed"})
    code, out, err = here(*command)
    assert (code, out) == (1, "table of sweep\n")
    assert sorted(sweep.began()) == [1, 2, 3]
    assert "3 failed before: will rerun" in err
    assert "2 finished: skipped; at most 60 training steps" in err
    assert list(failures(err)) == ["seed=2"]

    # More seeds are jobs of the same sweep.
    sweep.forget()
    sweep.does({})
    code, _, err = here(*WORDS, "seed=2,5", "output_dir=sweep")
    assert (code, sweep.began()) == (0, [2, 5])
    assert "failed:" not in err
    assert "to run only these" not in err
    entries = json.loads((sweep.folder / "sweep.json").read_text())["jobs"]
    assert [e["config"]["seed"] for e in entries] == [0, 1, 2, 3, 4, 5]
    assert {r["fingerprint"] for r in sweep.results().values()} == {e["fingerprint"] for e in entries}


def test_fail_fast(sweep: Sweeping, here: Here) -> None:
    sweep.does({0: "raise:oh", 1: "sleep:5", 2: "sleep:5"})
    words = [*WORDS, "seed=0,1,2", "output_dir=sweep", "sweep.fail_fast=true"]
    code, out, err = here(*words)
    assert code == 1
    assert out == "table of sweep\n"
    assert sweep.began() == [0]
    assert failures(err) == {"seed=0": "oh"}
    assert "2 not finished: seed=1, seed=2" in err
    assert printed_command(err) == words


def test_fail_fast_goes_for_later_batches(sweep: Sweeping, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search launches one batch after another."""
    monkeypatch.setattr(launch, "BASIC_SWEEPER", "another")
    sweep.does({1: "raise:oh"})
    words = [*WORDS, "seed=range(4)", "output_dir=sweep", "hydra.sweeper.max_batch_size=1"]
    code, _, err = here(*words, "sweep.fail_fast=true")
    assert code == 1
    assert sweep.began() == [0, 1]
    assert failures(err)[next(name for name in failures(err) if "seed=1" in name)] == "oh"
    assert "1 of 4 jobs done" in err
    assert "2 not finished" in err
    sweep.forget()
    assert here(*words)[0] == 1
    assert sweep.began() == [1, 2, 3]


def test_jobs_in_batches_are_all_checked_first(sweep: Sweeping, here: Here) -> None:
    code, _, err = here(*WORDS, "trainer.batch_size=10,-1", "output_dir=sweep", "hydra.sweeper.max_batch_size=1")
    assert code == 2
    assert sweep.began() == []
    assert "trainer.batch_size=-1" in err


def test_changed_settings_are_other_jobs(sweep: Sweeping, here: Here) -> None:
    """And so are other data; settings that change no result make no new job."""
    words = [*WORDS, "output_dir=sweep"]
    assert here(*words, "seed=0,1")[0] == 0
    code, _, err = here(*words, "trainer.learning_rate=0.5", "seed=0,1", "--check")
    assert code == 0
    assert "skipped" not in err
    _, out, _ = here(*words, "seed=1,0", "sweep.job_minutes=3", "trainer.log_every=7", "--check")
    assert "2 finished: skipped; at most 0 training steps" in out
    code, _, err = here(*words, "seed=0,2", "trainer.max_steps=21")
    assert code == 0
    assert sweep.began() == [0, 1, 0, 2]
    assert len(list(sweep.folder.glob("**/result.json"))) == 4
    assert len(json.loads((sweep.folder / "sweep.json").read_text())["jobs"]) == 4


def test_folder_of_a_sweep(sweep: Sweeping, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the same sweep, in any order of its overrides, and for more seeds."""
    folders: list[Path] = []

    def launch(self: Sweep, inner: Any, config: Any, context: Any, batch: Any, first: int) -> list[Any]:
        assert self.folder is not None
        folders.append(self.folder.relative_to(tmp_path))
        return []

    monkeypatch.setattr(Sweep, "launch", launch)
    for words in (
        ["model=vae,vlae", "seed=0"],
        ["seed=range(5)", "model=vae,vlae", "sweep.jobs=2", "trainer.checkpoint_seconds=3"],
        ["model=vae,vlae", "seed=0", "trainer.epochs=7"],
        ["experiment=vlae_cifar10_quick"],
        ["experiment=vlae_cifar10_quick", "cell=vae", "seed=7", "sweep.fail_fast=true"],
        ["experiment=vlae_cifar10_quick", "trainer.epochs=7"],
    ):
        assert here("-m", *words)[0] == 0
    one, same, other, cells, cell, longer = folders
    assert one == same
    assert one.match("outputs/sweeps/sweep-??????????")
    assert cells == cell == Path("outputs/sweeps/vlae_cifar10_quick")
    assert len({one, other, cells, longer}) == 4


def test_points_that_are_one_run(sweep: Sweeping, here: Here) -> None:
    sweep.does({0: "raise:oh"})
    code, _, err = here(*WORDS, "trainer.log_every=5,6", "seed=0,1", "output_dir=sweep")
    assert code == 1
    assert sweep.began() == [0, 1]
    assert "1 of 2 jobs done" in err
    assert len(failures(err)) == 1
    assert len(json.loads((sweep.folder / "sweep.json").read_text())["jobs"]) == 2


def test_a_folder_of_its_own_each_time(sweep: Sweeping, here: Here) -> None:
    """trainer.resume=never: the printed command must not run the finished jobs again."""
    sweep.does({1: ["killed", "ok"]})
    words = [*WORDS, "seed=0,1", "output_dir=sweep", "trainer.resume=never"]
    assert here(*words)[0] == 1
    code, _, err = here(*words)
    assert (code, sweep.began()) == (0, [0, 1, 0, 1])
    assert len(list(sweep.folder.glob("**/*-seed0-*-2/result.json"))) == 1
    assert len(list(sweep.folder.glob("**/result.json"))) == 4
    sweep.forget()
    sweep.does({3: ["killed", "ok"]})
    _, _, err = here(*WORDS, "seed=2,3", "output_dir=sweep", "trainer.resume=never")
    assert list(failures(err)) == ["seed=3"]
    if "to run only these" in err:
        here(*printed_command(err))
        assert sweep.began() == [2, 3, 3]


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 75)])
def test_a_sweep_that_is_stopped(
    sweep: Sweeping, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, code: int
) -> None:
    sweep.does({0: "ok", 1: "sleep:30"})
    words = [*WORDS, "seed=0,1,2", "output_dir=sweep"]
    monkeypatch.setattr(sys, "argv", ["vaerun", *words])
    launcher = Launcher(main.main, tmp_path / "out")
    try:
        sweep.until("train", 1)
        launcher.send(getattr(signal, name))
        assert launcher.wait() == code
    finally:
        launcher.end()
    assert sweep.status() == {0: "ok", 1: "interrupted"}
    assert [n["end"] for n in sweep.notes("end")] == [0, 75]  # a job is sent SIGTERM for either
    text = launcher.text()
    assert text.splitlines()[-1] == f"vaerun: stopped by {name}; run the same command again to resume"
    assert "2 not finished: seed=1, seed=2" in text
    assert "failed" not in text.replace("0 failed", "")
    assert printed_command(text) == words
    assert "table of sweep" in text


def test_the_table_is_refused(sweep: Sweeping, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or its files cannot be written: failures are listed all the same."""

    def write_all(folder: Path) -> str:
        raise RunError("cannot write table.md: No space left on device")

    monkeypatch.setattr(vaerun.report, "write_all", write_all)
    sweep.does({1: "raise:oh"})
    code, _, err = here(*WORDS, "seed=0,1", "output_dir=sweep")
    assert code == 1
    assert failures(err) == {"seed=1": "oh"}
    assert "No space left on device" in err


def test_another_process_has_a_job(sweep: Sweeping, here: Here) -> None:
    assert here(*WORDS, "seed=0,1", "output_dir=sweep")[0] == 0
    folder = next(sweep.folder.glob("**/*-seed1-*"))
    with holding(folder):
        code, out, _ = here(*WORDS, "seed=0,1,2", "output_dir=sweep", "--check")
    assert code == 0
    assert planned(out) == {
        "seed=0": "finished: skipped",
        "seed=1": "running elsewhere: will wait",
        "seed=2": "to run",
    }
    assert "at most 20 training steps" in out
