"""A run to launch, its job file, and its outcome."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vaerun import errors
from vaerun.config.schema import Settings
from vaerun.config.settings import to_settings
from vaerun.errors import EXIT_BUSY
from vaerun.storage.atomic import write_atomically
from vaerun.storage.run_dir import RunDirLocked

JOB_FILE = ".job.json"
EXIT_CODE_FILE = ".ended"  # holds the exit code of a run that shared its process with others


@dataclass(frozen=True)
class Job:
    """A run to launch.

    Attributes:
        settings: validated settings.
        folder: absolute path of the run directory.
        overrides: command-line overrides, to be stored with the run.
        hydra: Hydra's own configuration as YAML, to be stored with the run.
        fingerprint: fingerprint of the run; "" if not known yet.
        label: tells it apart from the other jobs of a sweep or the other replicas.
    """

    settings: Settings
    folder: Path
    overrides: list[str]
    hydra: str | None = None
    fingerprint: str = ""
    label: str = ""

    @property
    def prefix(self) -> str:
        """Prefix of this job's lines in shared output."""
        return f"{self.label}: " if self.label else ""


class JobState(StrEnum):
    """State of a job, before its launch or afterwards."""

    NEW = "new"  # no result.json yet
    RESUMABLE = "resumable"  # started, but stopped before the end
    RUNNING = "running"  # in another process
    FINISHED = "finished"
    FAILED = "failed"
    SKIPPED = "skipped"  # never started, because the sweep stopped


@dataclass(frozen=True)
class JobOutcome:
    """Outcome of a job.

    Attributes:
        state: FINISHED, FAILED, ...; NEW or RESUMABLE if it was stopped on request.
        reason: reason of a failure.
        seconds: run time.
    """

    state: JobState
    reason: str = ""
    seconds: float = 0.0


def write_job(job: Job, path: Path) -> None:
    """Write the job file, which the worker process reads. Raises RunError if that fails."""
    settings = replace(job.settings, trainer=replace(job.settings.trainer))
    if settings.trainer.resume == "never":
        settings.trainer.resume = "auto"  # a free folder has been chosen already
    record = {"settings": asdict(settings), "folder": str(job.folder), "words": job.overrides, "hydra": job.hydra}
    write_atomically(path, json.dumps(record).encode())  # unlike write_json, preserves infinite values


def read_job(record: dict[str, Any]) -> Job:
    """The job described by the contents of a job file."""
    settings = to_settings(OmegaConf.create(record["settings"]))
    return Job(settings, Path(record["folder"]), record["words"], record["hydra"])


def worker_exit_code(error: BaseException | None) -> int:
    """Exit code of a worker whose run raised this error, as for `vaerun`, or EXIT_BUSY."""
    return EXIT_BUSY if isinstance(error, RunDirLocked) else errors.exit_code(error)


def describe_exit(code: int) -> str:
    """Describe an exit code in the convention of `subprocess` (negative: killed by that signal)."""
    if code >= 0:
        return f"ended with exit code {code}" + ("" if code else " and no result")
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (manually, or by the system when memory ran out)" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"
