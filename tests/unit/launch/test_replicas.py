"""Several runs in one process: each is identical to a stand-alone run, whatever becomes of the others."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from support.runs.commands import SHORT, assert_same_bits, load, records

from vaerun.config.schema import SweepSettings
from vaerun.errors import InputError, Interrupted, RunError
from vaerun.launch import replicas
from vaerun.launch.job import worker_exit_code
from vaerun.launch.process import JobProcess
from vaerun.launch.replicas import Barrier, format_error
from vaerun.run.experiment import Experiment
from vaerun.signals import ShutdownSignal
from vaerun.storage.run_dir import RunDirLocked
from vaerun.sweep import local, sweep
from vaerun.sweep.slots import Slot

pytestmark = pytest.mark.usefixtures("command_environment")


def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    monkeypatch.setattr(replicas, "can_run_concurrently", lambda jobs: True)


@pytest.mark.parametrize(
    ("model", "mode"),
    [
        ("vae", "in turn"),
        ("vae", "at once"),
        *(pytest.param(name, "at once", marks=pytest.mark.slow) for name in ("vlae", "sa_vae", "gan")),
    ],
)
def test_replicas_are_runs_alone(
    here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, mode: str
) -> None:
    """Parameters to the bit, metrics and results; the directories are those of separate runs."""
    words = [f"model={model}", *(SHORT if model != "gan" else GAN)]
    if mode == "at once":
        threads(monkeypatch)
    code, _, err = here(*words, "trainer.replicas=2", "seed=4", f"output_dir={tmp_path}/all")
    assert code == 0, err
    assert "2 of 2 runs done" in err
    for seed in (4, 5):
        alone, member = tmp_path / f"alone{seed}", tmp_path / "all" / f"seed{seed}"
        code, _out, err = here(*words, f"seed={seed}", f"output_dir={alone}")
        assert code == 0, err
        for name in ("last", "best"):
            assert_same_bits(load(member, name)["objective"], load(alone, name)["objective"])
        assert records(member) == records(alone)
        first, second = (json.loads((folder / "result.json").read_text()) for folder in (member, alone))
        assert first["fingerprint"] == second["fingerprint"]
        assert first["metrics"] == second["metrics"]
        assert (first["seed"], first["status"]) == (seed, "ok")


GAN = """model.generator.hidden=[8] model.discriminator.hidden=[8] model.latent_dim=2 trainer.device=cpu
trainer.max_steps=25 trainer.log_every=5 evaluation.generated.samples=50 evaluation.images=20""".split()  # noqa: SIM905


def test_replicas_have_the_folders_of_their_runs(here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Re-running the command prints the finished runs, and so does the command of each single run."""
    monkeypatch.chdir(tmp_path)
    code, out, err = here("model=vae", *SHORT, "trainer.replicas=2")
    assert code == 0, err
    folders = sorted(p.parent for p in tmp_path.rglob("result.json"))
    assert all(f"recorded in {folder}\n" in out for folder in folders)
    assert [p.name.split("-")[1] for p in folders] == ["seed0", "seed1"]
    code, out, err = here("model=vae", *SHORT, "seed=1")
    assert code == 0
    assert "already finished" in out
    assert sorted(p.parent for p in tmp_path.rglob("result.json")) == folders
    code, out, _ = here("model=vae", *SHORT, "trainer.replicas=2")
    assert code == 0
    assert out.count("already finished") == 2


@pytest.mark.parametrize("mode", ["in turn", "at once"])
def test_one_that_fails_leaves_the_others_be(
    here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    if mode == "at once":
        threads(monkeypatch)
    (tmp_path / "all" / "seed1").mkdir(parents=True)
    (tmp_path / "all" / "seed1" / "other").write_text("not a run's")
    code, _out, err = here("model=vae", *SHORT, "trainer.replicas=3", f"output_dir={tmp_path}/all")
    assert code == 2
    assert "vaerun: error: seed 1: " in err
    assert "holds no vaerun run" in err
    assert "2 of 3 runs done" in err
    assert [(tmp_path / "all" / f"seed{i}" / "result.json").exists() for i in range(3)] == [True, False, True]


@pytest.mark.parametrize("mode", ["in turn", "at once"])
def test_a_signal_stops_all_and_the_command_goes_on(
    here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    if mode == "at once":
        threads(monkeypatch)
    words = ("model=vae", *SHORT, "trainer.max_steps=550", "evaluation.every=1000", f"output_dir={tmp_path}/all")

    def interrupt() -> None:
        end = time.monotonic() + 60
        while not (tmp_path / "all" / "seed0" / "metrics.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.3)
        signal.raise_signal(signal.SIGTERM)

    helper = threading.Thread(target=interrupt)
    helper.start()
    code, _, err = here(*words, "trainer.replicas=2")
    helper.join()
    assert code == 75, err
    status = json.loads((tmp_path / "all" / "seed0" / "result.json").read_text())["status"]
    assert status == "interrupted"
    code, _, err = here(*words, "trainer.replicas=2")
    assert code == 0, err
    steps = [line["step"] for line in records(tmp_path / "all" / "seed0") if "train/elbo" in line]
    assert steps == sorted(set(steps))
    assert steps[-1] == 550


def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the sweep believe that this machine has a GPU."""
    monkeypatch.setattr(sweep, "make_slots", lambda *_: [Slot(1, "0")])


@pytest.mark.slow
def test_jobs_of_a_sweep_share_a_process(here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch)
    words = ("model=vae", *SHORT, "seed=range(3)", "sweep.together=2", f"output_dir={tmp_path}/sweep")
    code, _out, err = here("-m", *words)
    assert code == 0, err
    folders = sorted(p.parent for p in tmp_path.rglob("result.json"))
    assert len(folders) == 3
    for seed, folder in enumerate(folders):
        alone = tmp_path / f"alone{seed}"
        assert here("model=vae", *SHORT, f"seed={seed}", f"output_dir={alone}")[0] == 0
        assert_same_bits(load(folder, "best")["objective"], load(alone, "best")["objective"])
    # Two shared a process; the third had one to itself.
    assert [(folder / ".ended").exists() for folder in folders] == [True, True, False]


@pytest.mark.slow
def test_a_killed_process_takes_its_jobs_along_and_they_go_on(
    here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch)
    words = ("model=vae", *SHORT, "trainer.max_steps=550", "evaluation.every=1000", "seed=0,1", "sweep.together=2")
    started: list[JobProcess] = []

    class Watched(JobProcess):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    def kill() -> None:
        end = time.monotonic() + 100
        while not list(tmp_path.rglob("metrics.jsonl")) and time.monotonic() < end:
            time.sleep(0.05)
        os.killpg(started[0].process.pid, signal.SIGKILL)

    monkeypatch.setattr(local, "JobProcess", Watched)
    helper = threading.Thread(target=kill)
    helper.start()
    code, _, err = here("-m", *words, f"output_dir={tmp_path}/sweep")
    helper.join()
    assert code == 1
    assert err.count("killed by SIGKILL") >= 2
    code, _, err = here("-m", *words, f"output_dir={tmp_path}/sweep")
    assert code == 0, err
    assert len(started) == 2


def test_groups_are_spread_over_gpus() -> None:
    jobs: list[Any] = list(range(13))
    for slots, together_, sizes in ((1, 13, [13]), (1, 1, [1] * 13), (2, 13, [7, 6]), (4, 3, [3, 3, 3, 3, 1])):
        settings = SweepSettings(together=together_)
        running = local.LocalLauncher(settings, [Slot(1, str(i)) for i in range(slots)], Mock(), ShutdownSignal())
        assert [len(group) for group in running._groups(jobs)] == sizes
    running = local.LocalLauncher(SweepSettings(together=5), [Slot(1), Slot(1)], Mock(), ShutdownSignal())
    assert [len(group) for group in running._groups(jobs)] == [1] * 13


def test_what_does_not_go_together(here: Any, tmp_path: Path) -> None:
    code, _, err = here("model=vae", *SHORT, "trainer.replicas=2", "trainer.processes=2", f"output_dir={tmp_path}/a")
    assert (code, err.count("\n")) == (2, 1)
    assert "trainer.replicas and trainer.processes cannot be combined" in err
    code, _, err = here("-m", "model=vae", *SHORT, "trainer.replicas=2", "seed=0,1", f"output_dir={tmp_path}/b")
    assert code == 2
    assert "trainer.replicas=2 is for single runs: in a sweep, list the seeds" in err


def test_the_gate() -> None:
    """Opens once all have arrived or ended, or a signal has come."""
    stop, opened = ShutdownSignal(), []
    barrier = Barrier(3, stop)

    def wait() -> None:
        barrier.arrive()
        barrier.wait()
        opened.append(1)

    waiting = [threading.Thread(target=wait) for _ in range(2)]
    for thread in waiting:
        thread.start()
    time.sleep(0.3)
    assert not opened
    barrier.arrive()
    for thread in waiting:
        thread.join(5)
    assert opened == [1, 1]
    barrier = Barrier(1, stop)
    stop.signum = signal.SIGTERM
    barrier.wait()


def test_a_bug_shows_its_traceback(here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(Experiment, "run", broken)
    code, _, err = here("model=vae", *SHORT, "trainer.replicas=2", f"output_dir={tmp_path}/a")
    assert code == 1
    assert err.count("ZeroDivisionError: of ours") == 2
    assert "Traceback" in err


def test_endings() -> None:
    errors = (None, RunDirLocked("x"), InputError("x"), RunError("x"), KeyError("x"))
    assert [worker_exit_code(error) for error in errors] == [0, 74, 2, 1, 1]
    assert worker_exit_code(Interrupted(signal.SIGINT)) == 130
    assert format_error(RunError("a\nb"), "seed 1: ") == "vaerun: error: seed 1: a b"
    assert format_error(Interrupted(signal.SIGTERM)).startswith("vaerun: stopped by SIGTERM")
