"""Planning of a sweep: all jobs are composed, checked and compared with their run directories before any starts."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock
import torch

from vaerun.config.identity import fingerprint
from vaerun.config.schema import DataSettings, Settings
from vaerun.data.dataset import ImageData
from vaerun.data.description import data_lines
from vaerun.errors import InputError, RunError
from vaerun.incidental import is_incidental
from vaerun.launch.job import Job, JobState
from vaerun.run.build import build_data, resolve_device
from vaerun.run.preflight import check_step_options
from vaerun.run.prepare import prepare
from vaerun.run.result import check_existing_run, read_result
from vaerun.storage.checkpoint import load_from_other_run
from vaerun.storage.json_files import read_json, write_json
from vaerun.storage.paths import expand_user
from vaerun.storage.run_dir import PLAN_FILE, is_locked, next_free_dir
from vaerun.storage.untrusted import PLAN_BYTES
from vaerun.text import print_output, printable


@dataclass
class PlannedJob:
    """A job of a sweep and its state.

    Attributes:
        job: the run to launch.
        number: index in the sweep, from 0.
        total_steps: number of training steps.
        state: NEW, RESUMABLE, FAILED (runs again), FINISHED (is skipped) or RUNNING (in another process).
        previous_result: result.json as it was when the sweep began.
        data_lines: what was read of its data set.
        left_out: overrides of the sweep whose keys the job lacks.
    """

    job: Job
    number: int
    total_steps: int
    state: JobState = JobState.NEW
    previous_result: dict[str, Any] | None = field(default=None, repr=False)
    data_lines: list[str] = field(default_factory=list, repr=False)
    left_out: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The overrides that tell it apart from the other jobs."""
        return self.job.label


class JobChecker:
    """Checks jobs one by one, and reads the data set that they share only once.

    Arguments:
        local: whether the jobs run on this machine, which must then have the requested device.
    """

    def __init__(self, local: bool = True) -> None:
        self.local = local
        self._data: tuple[DataSettings, ImageData] | None = None
        self._data_lines: list[str] = []
        self._warned: set[str] = set()

    def data(self, settings: DataSettings) -> ImageData:
        """The data set, on the CPU, since GPUs are left to the jobs. The most recent one is cached."""
        if self._data is None or self._data[0] != settings:
            data = build_data(settings, torch.device("cpu"))
            self._data = settings, data
            self._data_lines = data_lines(data)
        return self._data[1]

    def check(
        self, settings: Settings, folder: Path, overrides: list[str], hydra: str | None, number: int
    ) -> PlannedJob:
        """Check a job and return its plan. Raises InputError if it cannot run or its folder belongs to another run."""
        if self.local:
            check_step_options(settings.trainer, resolve_device(settings.trainer.device))
        data = self.data(settings.data)
        parts, identity = prepare(settings, data, overrides), fingerprint(asdict(settings), data.sha256)
        if settings.trainer.resume == "never":
            folder = next_free_dir(folder)
        result = check_existing_run(folder, identity, settings, overrides)
        if settings.trainer.resume not in ("auto", "never") and not (folder / "checkpoints" / "last.pt").exists():
            load_from_other_run(expand_user(settings.trainer.resume), "cpu")
        job = Job(settings, folder, overrides, hydra, identity)
        planned = PlannedJob(job, number, parts.plan.total_steps, job_state(job), result, self._data_lines)
        for line in parts.idle if planned.state != JobState.FINISHED else ():
            if line not in self._warned:
                print_output(f"vaerun: warning: {printable(line)}", sys.stderr)
                self._warned.add(line)
        return planned


def job_state(job: Job) -> JobState:
    """State of a job according to its run directory. Raises InputError if result.json cannot be read."""
    if is_locked(job.folder):
        return JobState.RUNNING
    result = read_result(job.folder)
    if result is None:
        return JobState.NEW
    if result["status"] == "ok" and result["fingerprint"] == job.fingerprint:
        return JobState.FINISHED
    if result["status"] == "failed":
        return JobState.FAILED
    return JobState.RESUMABLE


def unique_jobs(jobs: list[PlannedJob]) -> list[PlannedJob]:
    """Remove duplicates: points of a sweep that are the same run become one job.

    Raises InputError if different runs share a folder.
    """
    by_folder: dict[Path, PlannedJob] = {}
    for planned in jobs:
        first = by_folder.setdefault(planned.job.folder, planned).job
        if first.fingerprint != planned.job.fingerprint:
            raise InputError(
                f"'{' '.join(first.overrides)}' and '{' '.join(planned.job.overrides)}' are different runs with the "
                f"same folder {first.folder}: leave hydra.sweep.subdir as it is"
            )
    return list(by_folder.values())


def label_jobs(jobs: list[PlannedJob]) -> None:
    """Label each job by the overrides that differ between jobs."""
    # An override that a job lacks the key of does not vary for that alone.
    count = Counter(word for planned in jobs for word in {*planned.job.overrides, *planned.left_out})
    for planned in jobs:
        varying = [word for word in planned.job.overrides if count[word] < len(jobs)]
        label = " ".join(varying or planned.job.overrides) or "the defaults"
        planned.job = replace(planned.job, label=label)


def write_plan(folder: Path, command: list[str], jobs: list[PlannedJob]) -> None:
    """Add these jobs to sweep.json, which lists all jobs ever planned in this folder.

    Raises RunError if it cannot be written, InputError if the existing file is not a plan.
    """
    path = folder / PLAN_FILE
    with ExitStack() as lock:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.enter_context(filelock.FileLock(folder / ".sweep.lock"))  # another sweep may start at the same time
        except OSError as error:
            raise RunError(f"cannot write to {folder}: {error}; choose another output_dir") from error
        plan = read_plan(folder)
        by_folder = {entry["folder"]: entry for entry in plan["jobs"]} if plan else {}
        for planned in jobs:
            job, name = planned.job, relative_path(planned.job.folder, folder)
            by_folder[name] = {
                "folder": name,
                "fingerprint": job.fingerprint,
                "words": job.overrides,
                "left_out": planned.left_out,
                "total_steps": planned.total_steps,
                "config": asdict(replace(job.settings, output_dir=None)),
            }
        entries = list(by_folder.values())
        if jobs:  # one table for all jobs, with rows for each key that varies between them
            table = asdict(jobs[-1].job.settings.sweep.table)
            table["rows"] = table_rows([(entry["words"], entry.get("left_out", [])) for entry in entries], table)
            for entry in entries:
                entry["config"]["sweep"] = {**entry["config"].get("sweep", {}), "table": dict(table)}
        write_json(path, {"schema": 1, "command": command, "jobs": entries})


def table_rows(jobs: list[tuple[list[str], list[str]]], table: dict[str, Any]) -> str:
    """Keys for the rows of a sweep's table: the requested ones, and all others that the sweep varies.

    Arguments:
        jobs: overrides of each job, and those left out since it lacks the key, which then does not vary for that alone.
        table: the settings `sweep.table`.
    """
    values: dict[str, set[str]] = {}
    for overrides, left_out in jobs:
        value_of = {key.lstrip("+"): value for key, _, value in (word.partition("=") for word in overrides)}
        lacking = {word.partition("=")[0] for word in left_out}
        for key in [k for k in {**values, **value_of} if k not in lacking]:
            values.setdefault(key, set()).add(value_of.get(key, ""))
    rows = str(table["rows"]).split(",")
    columns = str(table["columns"] or "").split(",")
    for key, distinct in values.items():
        never_a_row = key in ("seed", "cell", "experiment", "trainer", "evaluation", "output_dir")
        if len(distinct) > 1 and not never_a_row and not is_incidental(key) and key not in columns:
            rows.append(key)
    return ",".join(dict.fromkeys(rows))


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The contents of sweep.json, or None if there is none. Raises InputError if it cannot be read."""
    path = folder / PLAN_FILE
    try:
        plan = read_json(path, PLAN_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({printable(error, 200)}): move it away") from error
    entries = plan.get("jobs") if isinstance(plan, dict) else None
    types = {"folder": str, "words": list, "config": dict}
    if not isinstance(entries, list) or any(
        not isinstance(e, dict) or any(not isinstance(e.get(key), t) for key, t in types.items()) for e in entries
    ):
        raise InputError(f"{path} is not a sweep plan: move it away, or choose another output_dir")
    return plan


def relative_path(folder: Path, base: Path) -> str:
    """`folder` relative to `base` if it lies inside, otherwise as it is."""
    return str(folder.relative_to(base)) if folder.is_relative_to(base) else str(folder)
