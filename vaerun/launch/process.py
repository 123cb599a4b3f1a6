"""Runs jobs in child processes, so that a killed job does not affect the others.

These are plain processes: a worker pool (loky, joblib) breaks when one of its workers is killed, and submitit's local
executor starts all jobs at once and takes about 17 s to notice that one was killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from vaerun.errors import EXIT_BUSY, EXIT_INTERRUPTED, EXIT_RESUMABLE, InputError, RunError
from vaerun.launch.job import EXIT_CODE_FILE, JOB_FILE, Job, JobOutcome, JobState, describe_exit, write_job
from vaerun.run.result import JOB_LOG, RESULT_FILE, read_result, utc_now, write_config
from vaerun.storage.json_files import write_json
from vaerun.storage.run_dir import RunDirLocked, lock_run_dir

GRACE_SECONDS = 120.0  # time for saving, between the request to stop and SIGKILL


def worker_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of a worker: that of this process, with the same vaerun and working directory importable."""
    here = os.getcwd()
    paths = [str(Path(__file__).resolve().parents[2])]
    paths += [here] if "" in sys.path or here in sys.path else []
    paths += [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    python = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    return dict(os.environ) | python | dict(extra or {})


def worker_command(*job_files: Path) -> list[str]:
    """Command that starts a worker for these jobs."""
    return [sys.executable, "-m", "vaerun.launch.worker", *map(str, job_files)]


class Attempt:
    """One attempt at a job: creates its folder, writes its job file and records the previous contents.

    Raises OSError, InputError or RunError if that fails.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.file = job, job.folder / JOB_FILE
        job.folder.mkdir(parents=True, exist_ok=True)
        self.previous_result = read_result(job.folder)
        write_job(job, self.file)
        (job.folder / EXIT_CODE_FILE).unlink(missing_ok=True)
        log = job.folder / JOB_LOG
        self.log_start = log.stat().st_size if log.exists() else 0

    def exit_code(self, process_code: int) -> int:
        """Exit code of this run in a process of several, or that of the process if the run has not left one."""
        try:
            return int((self.job.folder / EXIT_CODE_FILE).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return process_code


class JobProcess:
    """A worker process that runs one job (with trainer.processes > 1, as several processes) or several jobs at once.

    Arguments:
        jobs: one or more jobs; their folders are created.
        extra: additional environment variables.
        log: append the output to job.log in the first job's folder; otherwise inherit standard output and error.

    Raises InputError if a folder is not writable or the process cannot be started.
    """

    def __init__(self, jobs: Sequence[Job], extra: Mapping[str, str] | None = None, log: bool = True) -> None:
        self.job = jobs[0]
        self.sent: set[int] = set()
        output: IO[Any] | None = None
        try:
            self.attempts = [Attempt(job) for job in jobs]
            if log:
                output = open(self.job.folder / JOB_LOG, "ab")  # noqa: SIM115
            self.process = subprocess.Popen(
                worker_command(*(attempt.file for attempt in self.attempts)),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT if log else None,
                env=worker_environment(extra),
                start_new_session=True,  # so that Ctrl-C only reaches the parent, which forwards it
            )
        except (OSError, RunError) as error:
            raise InputError(f"cannot start a run in {self.job.folder}: {error}") from error
        finally:
            if output is not None:
                output.close()

    def signal(self, signum: int) -> None:
        """Forward a signal, unless the process has ended.

        SIGINT is sent as SIGTERM, since a KeyboardInterrupt during Python's start-up may be lost inside an import.
        """
        signum = signal.SIGTERM if signum == signal.SIGINT else signum
        if self.process.poll() is None:
            self.sent.add(signum)
            self.process.send_signal(signum)

    def kill(self) -> None:
        """Kill the process and all its descendants."""
        self.sent.add(signal.SIGKILL)
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self.process.kill()

    def abandon(self) -> None:
        """Kill the process and release its resources."""
        self.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def wait(self, timeout: float | None = None) -> int | None:
        """Return the exit code (negative: killed by that signal), or None if still running after `timeout` seconds."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        if self.process.stdin is not None:
            self.process.stdin.close()
        return code

    def outcome(self, code: int, received: int | None = None, reason: str = "") -> JobOutcome:
        """Outcome of the first job; see `outcomes`."""
        return self.outcomes(code, received, reason)[0]

    def outcomes(self, code: int, received: int | None = None, reason: str = "") -> list[JobOutcome]:
        """Determine the outcome of each job. Failures that the child did not record in result.json are recorded here.

        Arguments:
            code: exit code of the process.
            received: signal that asked this process to stop; the child may have received it as well.
            reason: reason of the failure, if the jobs are known to have failed.
        """
        if len(self.attempts) == 1:
            return [self._outcome(self.attempts[0], code, received, reason)]
        return [self._outcome(attempt, attempt.exit_code(code), received, reason) for attempt in self.attempts]

    def _outcome(self, attempt: Attempt, code: int, received: int | None, reason: str) -> JobOutcome:
        job = attempt.job
        if code == EXIT_BUSY:
            return JobOutcome(JobState.RUNNING)
        try:
            result = read_result(job.folder)
        except InputError as error:
            return JobOutcome(JobState.FAILED, str(error))
        is_new = result is not None and result != attempt.previous_result  # whether this attempt wrote it
        if result is not None and result["status"] == "ok" and result["fingerprint"] == job.fingerprint:
            return JobOutcome(JobState.FINISHED)  # even if the process crashed during shutdown
        signals = self.sent | ({received} if received is not None else set())
        # With several processes per run, only result.json tells whether they saved and stopped; the exit code does not.
        saved = is_new and result is not None and result["status"] == "interrupted"
        # A process that was asked to stop before its run began may exit with any code.
        if (
            signals
            and not reason
            and (code in (EXIT_RESUMABLE, EXIT_INTERRUPTED) or -code in signals or saved or not is_new)
        ):
            return JobOutcome(JobState.NEW if result is None else JobState.RESUMABLE)
        # With several processes per run, rank 0 may only have recorded the loss of another rank; the log has the cause.
        has_ranks = job.settings.trainer.processes > 1
        if not (reason or has_ranks) and code == 1 and is_new and result is not None and result["status"] == "failed":
            return JobOutcome(JobState.FAILED, str(result.get("error")))
        if not reason and code > 0:
            reason = last_error_line(job.folder, attempt.log_start) or ""
        return JobOutcome(JobState.FAILED, record_failure(job, reason or describe_exit(code)))


def record_failure(job: Job, reason: str) -> str:
    """Record in result.json that the run failed, and return the reason.

    The file is not changed if the run is finished, has another configuration, or was taken over by another process.
    """
    try:
        with lock_run_dir(job.folder):
            result = read_result(job.folder)
            if result is None:
                write_config(job.folder, asdict(job.settings), job.overrides, job.hydra)
                write_json(job.folder / RESULT_FILE, _failed_result(job, reason))
            elif result["fingerprint"] == job.fingerprint and result["status"] != "ok":
                write_json(job.folder / RESULT_FILE, result | {"status": "failed", "ended": utc_now(), "error": reason})
    except (RunDirLocked, InputError, RunError, OSError) as error:  # still report the reason
        return f"{reason} ({error})"
    return reason


def _failed_result(job: Job, reason: str) -> dict[str, Any]:
    """Contents of result.json for a run that failed before writing it."""
    s = job.settings
    return {
        "schema": 1, "status": "failed", "started": None, "ended": utc_now(), "fingerprint": job.fingerprint,
        "command": ["vaerun", *job.overrides], "model": s.model.name, "data": s.data.name,
        "estimator": s.estimator.name, "seed": s.seed, "metrics": {}, "details": {}, "protocol": {}, "timing": {},
        "environment": {}, "error": reason,
    }  # fmt: skip


def last_error_line(folder: Path, start: int = 0) -> str | None:
    """The last error line of a job's log after byte `start`, or None if there is none."""
    try:
        with open(folder / JOB_LOG, "rb") as file:
            file.seek(max(start, file.seek(0, os.SEEK_END) - 8192))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    lines = [line for line in lines if line.strip()]
    if not lines:
        return None
    line = next((line for line in reversed(lines) if line.startswith("vaerun: error: ")), lines[-1])
    return line.removeprefix("vaerun: error: ").strip()
