"""Sweeps on a Slurm of one node (scripts/slurm_node.sh): failures, lost jobs, time limits."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sweeps.launchers import (
    PATIENCE,
    SHORT,
    end,
    eventually,
    has_checkpoint,
    job_with,
    jobs,
    needs,
    node,
    record,
    run,
    six_jobs,
    start,
    training,
    worker,
)

from vaerun.errors import RunError

needs("hydra_submitit_launcher", "slurm")
pytestmark = pytest.mark.slow

LAUNCH = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1"]


@pytest.fixture(scope="module")
def slurm(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("slurm")
    node("slurm_node.sh", "up", folder)
    yield env | {"SLURM_CONF": str(folder / "slurm.conf")}
    node("slurm_node.sh", "down", folder)


def ask(slurm: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=60, check=True).stdout


def running(slurm: dict[str, str]) -> dict[int, str]:
    """Slurm's name of each running task by its array index."""
    names = ask(slurm, "squeue", "--noheader", "--array", "--states=R", "--format=%i").split()
    return {int(name.rpartition("_")[2]) if "_" in name else 0: name for name in names}


def test_a_failed_and_a_killed_job_leave_the_others_alone(slurm: dict[str, str], tmp_path: Path) -> None:
    six_jobs(tmp_path / "sweep", LAUNCH, slurm)


LONG = [
    *SHORT,
    "trainer.max_steps=3000",
    "trainer.epochs=1000",
    "trainer.checkpoint_seconds=3600",
    "model=vae",
    "seed=0",
]


@pytest.fixture(scope="module")
def undisturbed(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """result.json of the same run, not stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, output = run(["-m", f"output_dir={folder / 'sweep'}", *LONG], folder / "log", env)
    assert code == 0, output
    return record(job_with(folder / "sweep", "seed=0"))


# At the time limit Slurm signals every process of the task, including the run's.
@pytest.mark.parametrize("command", [["scancel", "--signal=USR2"], ["scontrol", "requeue"]], ids=" ".join)
def test_a_requeued_run_is_saved_and_ends_as_if_nothing_had_been(
    slurm: dict[str, str], undisturbed: dict[str, Any], tmp_path: Path, command: list[str]
) -> None:
    process = start(["-m", *LAUNCH, f"output_dir={tmp_path / 'sweep'}", *LONG], tmp_path / "log", slurm)
    folder = job_with(tmp_path / "sweep", "seed=0")
    pid = eventually(lambda: (folder / "metrics.jsonl").exists() and training(folder), "training", process)
    assert not has_checkpoint(folder)
    ask(slurm, *command, running(slurm)[0])
    eventually(lambda: worker(folder) != pid, "its end")
    assert record(folder)["status"] == "interrupted"
    assert has_checkpoint(folder)
    assert process.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    result = record(folder)
    assert result["status"] == "ok"
    assert (folder / "run.log").read_text().count(" start: ") == 2
    assert "Exception ignored" not in (folder / "job.log").read_text()
    assert result["metrics"] == undisturbed["metrics"]
    assert result["fingerprint"] == undisturbed["fingerprint"]


def test_a_lost_job_is_one_failed_job(monkeypatch: pytest.MonkeyPatch) -> None:
    from submitit.core import core, utils

    from vaerun.sweep.launcher_plugins import tolerate_lost_jobs

    def results(job: Any) -> list[str]:
        if job == "lost":
            raise utils.UncompletedJobError("its node is gone\nand more")
        return [job]

    monkeypatch.setattr(core.Job, "results", results)
    wait: Any = core.Job
    with tolerate_lost_jobs("hydra_plugins.hydra_submitit_launcher.submitit_launcher"):
        returned = [wait.results(job)[0] for job in ("a", "lost", "b")]
    assert [returned[0], returned[2]] == ["a", "b"]
    assert returned[1].status.name == "FAILED"
    with pytest.raises(RunError, match="its node is gone"):
        _ = returned[1].return_value
    with pytest.raises(utils.UncompletedJobError):
        wait.results("lost")


def test_a_job_that_slurm_cancels_does_not_end_the_waiting_for_the_others(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    words = ["-m", *LAUNCH, f"output_dir={tmp_path / 'sweep'}", *SHORT, "model=vae", "trainer.epochs=1000"]
    words += ["trainer.max_steps=2000", "seed=0,1"]
    process = start(words, tmp_path / "log", slurm)
    cancelled, other = (job_with(tmp_path / "sweep", f"seed={n}") for n in (0, 1))
    eventually(lambda: training(cancelled), "the job to be cancelled", process)
    ask(slurm, "scancel", running(slurm)[0])
    assert process.wait(PATIENCE) == 1
    assert record(other)["status"] == "ok", (tmp_path / "log").read_text()
    assert record(cancelled)["status"] == "interrupted"
    assert "1 of 2 jobs done" in (tmp_path / "log").read_text()

    code, output = run(words, tmp_path / "again.log", slurm)
    assert code == 0, output
    assert "2 of 2 jobs done" in output
    assert (other / "run.log").read_text().count(" start: ") == 1


def test_jobs_outlive_the_process_that_submitted_them(slurm: dict[str, str], tmp_path: Path) -> None:
    words = ["-m", *LAUNCH, f"output_dir={tmp_path / 'sweep'}", *SHORT, "model=vae", "seed=0"]
    process = start(words, tmp_path / "log", slurm)
    folder = job_with(tmp_path / "sweep", "seed=0")
    eventually(lambda: worker(folder), "the job", process)
    end(process)
    eventually(lambda: record(folder).get("status") == "ok", "its end")
    code, output = run(words, tmp_path / "again.log", slurm)
    assert code == 0
    assert "finished: skipped" in output
    assert list(jobs(tmp_path / "sweep")) == [folder]
