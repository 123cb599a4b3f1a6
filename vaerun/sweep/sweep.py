"""A sweep: plans its jobs, runs them locally or through another launcher, and collects their outcomes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from vaerun.config.composing import composing
from vaerun.config.hydra_settings import write_later
from vaerun.config.settings import to_settings
from vaerun.errors import InputError, RunError
from vaerun.launch.job import JobOutcome, JobState
from vaerun.launch.process import record_failure
from vaerun.report import TABLES
from vaerun.report.tensorboard import EVENTS_FOLDER
from vaerun.run.result import read_result
from vaerun.signals import ShutdownSignal
from vaerun.storage.atomic import write_atomically
from vaerun.storage.run_dir import PLAN_FILE, check_paths
from vaerun.sweep.composition import compose_jobs
from vaerun.sweep.launcher_plugins import tolerate_lost_jobs
from vaerun.sweep.local import LocalLauncher
from vaerun.sweep.plan import JobChecker, PlannedJob, job_state, label_jobs, unique_jobs, write_plan
from vaerun.sweep.slots import make_slots
from vaerun.sweep.summary import plan_text, print_summary
from vaerun.sweep.view import SweepProgress
from vaerun.text import print_output, printable
from vaerun.tracking.progress import safe_print

BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
MULTIRUN = "multirun.yaml"  # written by Hydra


class Sweep:
    """A sweep of one or more batches of jobs.

    Arguments:
        command: the command line: `vaerun` and its arguments.
        check_only: only print the plan.
        stop: shutdown signals.
    """

    def __init__(self, command: list[str], check_only: bool, stop: ShutdownSignal) -> None:
        self.command, self.check_only, self.stop = command, check_only, stop
        self.jobs: list[PlannedJob] = []
        self.outcomes: dict[int, JobOutcome] = {}
        self.folder: Path | None = None
        self.checker: JobChecker | None = None
        self.started = self.launcher_failed = False
        self.failure: Exception | None = None  # exception raised by `launch`, which passes through Hydra
        self.missing: list[Path] = []  # folders that Hydra created for the sweep
        self.multirun: bytes | None = None  # previous contents of MULTIRUN

    def plan(
        self, config: DictConfig, context: HydraContext, batch: Sequence[Sequence[str]], first: int
    ) -> tuple[list[PlannedJob | InputError], list[DictConfig]]:
        """Compose and check a batch. Outside a search, a job is composed without overrides whose keys it lacks.

        Raises InputError if a job cannot run; with several jobs, after printing a line for each invalid one. In a
        search, invalid jobs do not raise, and their trials fail.
        """
        setup_globals()
        self.checker = self.checker or JobChecker(local=config.hydra.launcher._target_ == BASIC_LAUNCHER)
        assert self.folder is not None
        planned: list[PlannedJob | InputError] = []
        with composing():
            jobs = compose_jobs(
                lambda words: context.config_loader.load_sweep_config(config, words), batch, strict=is_search(config)
            )
        rejected = 0
        for number, composed in enumerate(jobs, first):
            overrides, job_config = composed.words, composed.config
            with composing(), open_dict(job_config):
                job_config.hydra.job.id, job_config.hydra.job.num = str(number), number
                hydra = OmegaConf.to_yaml(OmegaConf.create({"hydra": job_config.hydra}))
                folder = self.folder / str(job_config.hydra.sweep.subdir)
                del job_config["hydra"]
            try:
                settings = to_settings(job_config)
                if settings.trainer.replicas > 1:
                    raise InputError(
                        f"trainer.replicas={settings.trainer.replicas} is for single runs: in a sweep, list the seeds, "
                        "such as seed=range(5); sweep.together=5 then runs five jobs at once in one process per GPU"
                    )
                job = self.checker.check(settings, folder, overrides, hydra, number)
                job.left_out = composed.left_out
                planned.append(job)
            except InputError as error:
                if len(batch) == 1 and not is_search(config):
                    raise
                rejected += 1
                planned.append(error)
                print_output(f"vaerun: error: {printable(' '.join(overrides))}: {printable(error)}", sys.stderr)
        if rejected and (not is_search(config) or (rejected == len(batch) and not self.started)):
            count = "1 job" if rejected == 1 else f"{rejected} jobs"
            raise InputError(f"{count} of {len(batch)} cannot run (see above): nothing was started")
        return planned, [composed.config for composed in jobs]

    def launch(
        self, inner: Any, config: DictConfig, context: HydraContext, batch: Sequence[Sequence[str]], first: int
    ) -> list[JobReturn]:
        """Run a batch and return the outcome of each job. Raises InputError if the batch is empty."""
        if not batch:  # an override without values leaves no combinations
            raise InputError("the sweep has no jobs: one of its overrides has no values, as in range(0); give it some")
        planned, composed = self.plan(config, context, batch, first)
        jobs = unique_jobs([p for p in planned if isinstance(p, PlannedJob)])
        label_jobs(jobs)
        assert self.folder is not None
        if self.check_only:
            print_output(plan_text(jobs, self.folder))
            return self._returns(planned, composed, config)
        write_plan(self.folder, self.command, jobs)
        if not self.started:
            safe_print(plan_text(jobs, self.folder))
        self.started = True
        self.jobs += jobs
        todo = [p for p in jobs if p.state != JobState.FINISHED]
        self.outcomes |= {p.number: JobOutcome(JobState.FINISHED) for p in jobs if p.state == JobState.FINISHED}
        if todo and todo[0].job.settings.sweep.fail_fast and self.has_failures:  # in an earlier batch
            self.outcomes |= {p.number: JobOutcome(JobState.SKIPPED) for p in todo}
        elif todo and inner is None:
            self._run_locally(todo, len(jobs) - len(todo))
        elif todo:
            self._run_remotely(inner, todo, first)
        return self._returns(planned, composed, config)

    @property
    def has_failures(self) -> bool:
        """Whether any job has failed."""
        return any(outcome.state == JobState.FAILED for outcome in self.outcomes.values())

    def _run_locally(self, todo: list[PlannedJob], skipped: int) -> None:
        settings = todo[0].job.settings.sweep
        processes = max(p.job.settings.trainer.processes for p in todo)
        slots = make_slots(settings, {p.job.settings.trainer.device for p in todo}, processes)
        if settings.jobs is not None and len(slots) < settings.jobs:
            safe_print(f"{len(slots)} jobs at once: one per GPU slot (sweep.jobs_per_gpu={settings.jobs_per_gpu})")
        launcher = LocalLauncher(settings, slots, SweepProgress(todo, skipped, len(slots)), self.stop)
        try:
            launcher.run(todo)
        finally:
            self.outcomes |= launcher.outcomes

    def _run_remotely(self, inner: Any, todo: list[PlannedJob], first: int) -> None:
        """Run jobs through Hydra's launcher, whose own errors are less informative than the jobs' results."""
        error: BaseException | None = None
        returned: Sequence[JobReturn] = ()
        try:
            with tolerate_lost_jobs(type(inner).__module__):
                returned = inner.launch([p.job.overrides for p in todo], initial_job_idx=first)
        except Exception as raised:
            error = raised
        not_run = 0
        for p, job_return in zip_longest(todo, returned):
            result = read_result(p.job.folder)
            state = job_state(p.job)
            if state == JobState.RESUMABLE and result is not None and result["status"] == "running":
                reason = record_failure(p.job, "killed or lost: its process ended without reporting why")
                outcome = JobOutcome(JobState.FAILED, reason)
            elif state == JobState.FAILED and result is not None and result != p.previous_result:
                outcome = JobOutcome(JobState.FAILED, str(result.get("error")))
            elif state in (JobState.FINISHED, JobState.RUNNING, JobState.RESUMABLE):
                outcome = JobOutcome(state)
            elif job_return is not None and job_return.status == JobStatus.FAILED:
                outcome = JobOutcome(JobState.FAILED, str(job_return._return_value))
            else:
                not_run += 1
                outcome = JobOutcome(JobState.SKIPPED)
            self.outcomes[p.number] = outcome
        if error is not None and (not_run or not self.has_failures):
            text = " ".join(str(error).split())
            print_output(f"vaerun: error: the launcher gave up: {type(error).__name__}: {text}", sys.stderr)
            self.launcher_failed = True

    def _returns(
        self, planned: list[PlannedJob | InputError], composed: list[DictConfig], config: DictConfig
    ) -> list[JobReturn]:
        """Results for the sweeper. Failures are only passed to a search, since Hydra's basic sweeper would stop."""
        search = is_search(config)
        number_of = {p.job.folder: p.number for p in self.jobs}
        returns = []
        for p, job_config in zip(planned, composed, strict=True):
            if isinstance(p, InputError):
                job_return = JobReturn(cfg=job_config, task_name="vaerun", status=JobStatus.FAILED)
                job_return.return_value = p
                returns.append(job_return)
                continue
            job_return = JobReturn(
                overrides=p.job.overrides, cfg=job_config, working_dir=str(p.job.folder), task_name="vaerun"
            )
            outcome = self.outcomes.get(number_of.get(p.job.folder, -1))
            finished = outcome is not None and outcome.state == JobState.FINISHED
            result = read_result(p.job.folder) if finished else None
            job_return.status = JobStatus.COMPLETED
            if result is not None:
                job_return.return_value = validation_metric(result)
            elif search and outcome is not None:
                job_return.status = JobStatus.FAILED
                job_return.return_value = RunError(outcome.reason or f"{p.label}: {outcome.state}")
            returns.append(job_return)
        return returns

    def inspect(self, config: DictConfig) -> None:
        """Record the sweep's folder and its missing parents before Hydra creates them.

        Raises InputError if the folder, or a path that the sweep will write, exists with the wrong type, or if Hydra
        would write into the run directories.
        """
        write_later(config)
        folder = Path(str(config.hydra.sweep.dir)).absolute()
        existing = next(p for p in (folder, *folder.parents) if p.exists())
        check_paths((existing, folder / EVENTS_FOLDER), (folder / name for name in (MULTIRUN, PLAN_FILE, *TABLES)))
        self.folder = folder
        self.missing = [p for p in (folder, *folder.parents) if not p.exists()]
        multirun = self.folder / MULTIRUN
        self.multirun = multirun.read_bytes() if multirun.is_file() else None

    def clean_up(self) -> None:
        """Undo Hydra's changes to the folder of a sweep that was rejected or only checked."""
        if self.started or self.folder is None or not self.folder.is_dir():
            return
        if self.multirun is None:
            (self.folder / MULTIRUN).unlink(missing_ok=True)
        else:
            write_atomically(self.folder / MULTIRUN, self.multirun)
        for folder in self.missing:
            try:
                folder.rmdir()
            except OSError:  # not empty, or never created
                return

    def finish(self) -> int:
        """Write the table, print the summary and return the exit code."""
        if self.check_only or self.folder is None or not self.started:
            return 0
        print_summary(self.jobs, self.outcomes, self.folder, self.command)
        return 1 if self.launcher_failed or any(o.state != JobState.FINISHED for o in self.outcomes.values()) else 0


def is_search(config: DictConfig) -> bool:
    """Whether the sweeper chooses jobs based on the outcomes of earlier ones."""
    return bool(config.hydra.sweeper._target_ != BASIC_SWEEPER)


def validation_metric(result: dict[str, Any]) -> float | None:
    """The run's first validation metric, which a search optimises."""
    value = next((v for name, v in result["metrics"].items() if name.startswith("val/")), None)
    return None if value is None else float(value)
