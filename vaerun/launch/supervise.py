"""A run as a child process that this one waits for: a job on another machine, or one of several processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from vaerun.config.settings import Settings
from vaerun.errors import InputError, Interrupted, RunError
from vaerun.launch.process import BUSY_ELSEWHERE, FINISHED, GRACE_SECONDS, STOPPED, Child, Job
from vaerun.run.build import build_data
from vaerun.run.prepare import prepare
from vaerun.run.result import check_existing_run, read_result, table
from vaerun.signals import ShutdownSignal
from vaerun.storage.run_dir import is_locked, next_free_dir

TICK_SECONDS = 0.2


def run_attended(job: Job, *, log: bool) -> dict[str, Any]:
    """Run the job and return the record of its result.json.

    Signals are passed on; the child saves and stops.

    Arguments:
        job: to run.
        log: print to job.log in its folder; else where this process prints to.

    Raises InputError or RunError with the reason where it failed, Interrupted where a signal came.
    """
    with ShutdownSignal() as stop:
        child = Child(job, _threads(), log=log)
        asked: float | None = None
        with stop.deferred():
            while (ending := child.wait(TICK_SECONDS)) is None:
                if stop.signum is not None and asked is None:
                    asked = time.monotonic()
                    child.signal(stop.signum)
                elif asked is not None and time.monotonic() - asked > GRACE_SECONDS:
                    child.kill()
        signum = stop.signum
    verdict = child.verdict(ending, signum)
    if verdict.state == FINISHED:
        record = read_result(job.folder)
        assert record is not None
        return record
    if verdict.state == STOPPED:
        assert signum is not None
        stopped = Interrupted(signum)
        stopped.reported = not log and ending.code > 0
        raise stopped
    if verdict.state == BUSY_ELSEWHERE:
        raise InputError(f"another run is using {job.folder}: wait for it")
    error = (InputError if ending.code == 2 else RunError)(verdict.why)
    error.reported = not log and ending.code > 0
    raise error


def _threads() -> dict[str, str]:
    """Slurm says how many cores a job has, and torch does not listen."""
    given, cores = os.environ.get("OMP_NUM_THREADS"), os.environ.get("SLURM_CPUS_PER_TASK")
    return {"OMP_NUM_THREADS": cores} if cores and not given else {}


def run_single(settings: Settings, folder: Path, words: list[str], hydra: str | None) -> dict[str, Any]:
    """One run over several processes (trainer.processes), with its table and progress where this process prints to.

    Raises InputError, RunError, Interrupted.
    """
    if settings.trainer.resume == "never":
        folder = next_free_dir(folder)
    data = build_data(settings.data, torch.device("cpu"))
    parts = prepare(settings, data)  # what cannot work is refused once, not by every process
    before = check_existing_run(folder, parts.identity)
    if before is not None and before["status"] == "ok":
        print(f"finished before: {folder}\n{table(before, folder)}")
        return before
    return run_attended(Job(settings, folder.absolute(), words, hydra, parts.identity), log=False)


def run_remote(job: Job) -> dict[str, Any]:
    """The same as a job of another launcher than vaerun's own, whose process this is.

    Stopped by a signal that the launcher waits for as well (submitit's: save, then requeue), the launcher is given it
    once the run has saved; else this process ends with 75, "try again".
    """
    while is_locked(job.folder):  # what a lost worker left is saving, or another sweep has it
        time.sleep(TICK_SECONDS)
    found = read_result(job.folder)
    if found is not None and found["status"] == "ok" and found["fingerprint"] == job.fingerprint:
        return found  # a requeued job that had finished
    try:
        return run_attended(job, log=True)
    except Interrupted as stopped:
        if callable(signal.getsignal(stopped.signum)):
            signal.raise_signal(stopped.signum)
        sys.exit(stopped.exit_code)
