"""Sweeps on a Ray cluster of one node, on the loopback device (scripts/ray_node.sh)."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.sweeps.launchers import (
    PATIENCE,
    ROOT,
    SHORT,
    eventually,
    has_checkpoint,
    job_with,
    needs,
    node,
    parent,
    record,
    six_jobs,
    start,
    training,
)

needs("hydra_ray_launcher", "ray")
pytestmark = pytest.mark.slow

LAUNCH = ["hydra/launcher=ray"]


@pytest.fixture(scope="module")
def ray(env: dict[str, str]) -> Iterator[tuple[dict[str, str], list[str]]]:
    """The environment, and the command prefix that runs a command on the cluster."""
    # Not pytest's folder: the names of Ray's sockets would be too long.
    folder = Path(tempfile.mkdtemp(prefix="vray-"))
    ray_env = env | {"RAY": str(Path(sys.executable).with_name("ray")), "PYTHONPATH": str(ROOT)}
    try:
        node("ray_node.sh", "up", folder, 2, env=ray_env)
        yield ray_env, ["bash", str(ROOT / "scripts" / "ray_node.sh"), "run", str(folder)]
    finally:
        node("ray_node.sh", "down", folder, env=ray_env)
        shutil.rmtree(folder, ignore_errors=True)


def tasks() -> set[int]:
    """Processes in which Ray runs jobs."""
    pids = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes().startswith(b"ray::_run_job"):
                pids.add(int(entry.parent.name))
        except OSError:  # it has just ended
            continue
    return pids


def test_a_failed_and_a_killed_job_leave_the_others_alone(
    ray: tuple[dict[str, str], list[str]], tmp_path: Path
) -> None:
    six_jobs(tmp_path / "sweep", LAUNCH, *ray)


def test_a_job_whose_worker_is_lost_goes_on_in_another(ray: tuple[dict[str, str], list[str]], tmp_path: Path) -> None:
    words = ["-m", *LAUNCH, f"output_dir={tmp_path / 'sweep'}", *SHORT, "model=vae", "trainer.epochs=1000"]
    words += ["trainer.max_steps=1500", "trainer.checkpoint_seconds=1", "seed=0,1"]
    process = start(words, tmp_path / "log", *ray)
    lost, other = (job_with(tmp_path / "sweep", f"seed={n}") for n in (0, 1))
    pid = eventually(lambda: has_checkpoint(lost) and training(lost), "a checkpoint", process)
    task = parent(pid)
    assert task in tasks()
    os.kill(pid, signal.SIGSTOP)  # its saving takes long
    os.kill(task, signal.SIGKILL)
    eventually(lambda: len(tasks() - {task}) == 2, "the second attempt", process)
    time.sleep(10)  # it waits for the folder
    os.kill(pid, signal.SIGCONT)
    assert process.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    assert record(lost)["status"] == record(other)["status"] == "ok"
    assert (lost / "run.log").read_text().count(" start: ") == 2
    assert (other / "run.log").read_text().count(" start: ") == 1
