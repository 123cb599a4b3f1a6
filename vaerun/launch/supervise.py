"""Executes a run in a child process and waits for it: a job on another machine, or a run of several processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vaerun.config.identity import fingerprint
from vaerun.config.schema import Settings
from vaerun.errors import EXIT_BAD_INPUT, InputError, Interrupted, RunError
from vaerun.launch.job import Job, JobState
from vaerun.launch.process import GRACE_SECONDS, JobProcess
from vaerun.run.build import build_data
from vaerun.run.prepare import prepare
from vaerun.run.result import check_existing_run, format_table, read_result
from vaerun.signals import ShutdownSignal
from vaerun.storage.run_dir import is_locked, next_free_dir
from vaerun.text import print_output

TICK_SECONDS = 0.2


def supervise(job: Job, *, log: bool) -> dict[str, Any]:
    """Run the job and return its result.json.

    Signals are forwarded; the child saves and stops.

    Arguments:
        job: job to run.
        log: write the output to job.log in the job's folder; otherwise inherit standard output and error.

    Raises InputError or RunError with the reason if the run failed, Interrupted if a signal stopped it.
    """
    with ShutdownSignal() as stop:
        child = JobProcess([job], _thread_variables(), log=log)
        forwarded_at: float | None = None
        with stop.deferred():
            while (code := child.wait(TICK_SECONDS)) is None:
                if stop.signum is not None and forwarded_at is None:
                    forwarded_at = time.monotonic()
                    child.signal(stop.signum)
                elif forwarded_at is not None and time.monotonic() - forwarded_at > GRACE_SECONDS:
                    child.kill()
        signum = stop.signum
    outcome = child.outcome(code, signum)
    if outcome.state == JobState.FINISHED:
        result = read_result(job.folder)
        assert result is not None
        return result
    if outcome.state == JobState.RUNNING:
        raise InputError(f"another run is using {job.folder}: wait for it")
    error: InputError | RunError | Interrupted
    if outcome.state == JobState.FAILED:
        error = (InputError if code == EXIT_BAD_INPUT else RunError)(outcome.reason)
    else:
        assert signum is not None
        error = Interrupted(signum)
    error.reported = not log and code > 0  # the child has printed it to the same standard error
    raise error


def _thread_variables() -> dict[str, str]:
    """OMP_NUM_THREADS set to Slurm's number of cores per task, which torch ignores."""
    threads, cores = os.environ.get("OMP_NUM_THREADS"), os.environ.get("SLURM_CPUS_PER_TASK")
    return {"OMP_NUM_THREADS": cores} if cores and not threads else {}


def run_multiprocess(settings: Settings, folder: Path, overrides: list[str], hydra: str | None) -> dict[str, Any]:
    """Train one run with several processes (trainer.processes), which inherit standard output and error.

    Raises InputError, RunError, Interrupted.
    """
    if settings.trainer.resume == "never":
        folder = next_free_dir(folder)
    data = build_data(settings.data, torch.device("cpu"))
    prepare(settings, data)  # reject invalid settings once, rather than in every process
    identity = fingerprint(asdict(settings), data.sha256)
    result = check_existing_run(folder, identity, settings, overrides)
    if result is not None and result["status"] == "ok":
        print_output(f"already finished: {folder}\n{format_table(result, folder)}")
        return result
    return supervise(Job(settings, folder.absolute(), overrides, hydra, identity), log=False)


def run_remote(job: Job) -> dict[str, Any]:
    """Run the job in a child of this process, which was started by a launcher other than vaerun's.

    If the launcher handles the signal that stopped the run (submitit requeues the job), the signal is raised again once
    the run has saved; otherwise this process exits with 75, "try again".
    """
    while is_locked(job.folder):  # by an orphaned run that is still saving, or by another sweep
        time.sleep(TICK_SECONDS)
    result = read_result(job.folder)
    if result is not None and result["status"] == "ok" and result["fingerprint"] == job.fingerprint:
        return result  # a requeued job that has already finished
    try:
        return supervise(job, log=True)
    except Interrupted as stopped:
        if callable(signal.getsignal(stopped.signum)):
            signal.raise_signal(stopped.signum)
        sys.exit(stopped.exit_code)
