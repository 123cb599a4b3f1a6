"""A sweep: its jobs planned, run here or by another launcher, and what became of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from vaerun.config.settings import check
from vaerun.errors import InputError, RunError
from vaerun.launch.process import settle
from vaerun.report import TABLES
from vaerun.report.tensorboard import BOARD
from vaerun.run import result as records
from vaerun.signals import ShutdownSignal
from vaerun.storage.atomic import write_atomically
from vaerun.storage.run_dir import check_paths
from vaerun.sweep.launcher_plugins import lost_jobs_fail
from vaerun.sweep.local import SKIPPED, Fate, Local
from vaerun.sweep.plan import (
    FAILED,
    FINISHED,
    PLAN,
    RUNNING,
    STARTED,
    Checker,
    Planned,
    distinct,
    label,
    state_of,
    write_plan,
)
from vaerun.sweep.slots import slots
from vaerun.sweep.summary import plan_text, tell_end
from vaerun.sweep.view import View, say
from vaerun.text import printable

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
MULTIRUN = "multirun.yaml"  # Hydra's own record of the sweep


class Sweep:
    """A sweep from its first to its last batch of jobs.

    Arguments:
        command: `vaerun` and its words.
        check_only: print the plan and stop.
        stop: signals.
    """

    def __init__(self, command: list[str], check_only: bool, stop: ShutdownSignal) -> None:
        self.command, self.check_only, self.stop = command, check_only, stop
        self.jobs: list[Planned] = []
        self.fates: dict[int, Fate] = {}
        self.folder: Path | None = None
        self.checker: Checker | None = None
        self.begun = self.gave_up = False
        self.absent: list[Path] = []  # folders that are there only because Hydra has made the sweep's
        self.multirun: bytes | None = None  # what Hydra's record of the sweep was before

    def plan(
        self, config: DictConfig, context: HydraContext, batch: Sequence[Sequence[str]], first: int
    ) -> tuple[list[Planned | InputError], list[DictConfig]]:
        """Compose and check a batch.

        Raises InputError, after a line for each job of several that cannot work, unless a search proposed it: its
        trial fails.
        """
        setup_globals()
        here = config.hydra.launcher._target_ == BASIC
        self.checker = self.checker or Checker(here)
        assert self.folder is not None
        planned: list[Planned | InputError] = []
        composed: list[DictConfig] = []
        refused = 0
        for number, words in enumerate(batch, first):
            whole = context.config_loader.load_sweep_config(config, list(words))
            with open_dict(whole):
                whole.hydra.job.id, whole.hydra.job.num = str(number), number
                hydra = OmegaConf.to_yaml(OmegaConf.create({"hydra": whole.hydra}))
                folder = self.folder / str(whole.hydra.sweep.subdir)
                del whole["hydra"]
            composed.append(whole)
            try:
                settings = check(whole)
                if settings.trainer.replicas > 1:
                    raise InputError(
                        f"trainer.replicas={settings.trainer.replicas} is for a single run: in a sweep name the seeds, "
                        "such as seed=range(5); sweep.together=5 then runs five jobs at once in a process of a GPU"
                    )
                planned.append(self.checker.check(settings, folder, list(words), hydra, number))
            except InputError as error:
                if len(batch) == 1 and not is_search(config):
                    raise
                refused += 1
                planned.append(error)
                print(f"vaerun: error: {printable(' '.join(words))}: {printable(error)}", file=sys.stderr)
        if refused and (not is_search(config) or (refused == len(batch) and not self.begun)):
            some = "1 job" if refused == 1 else f"{refused} jobs"
            raise InputError(f"{some} of {len(batch)} cannot work (above): nothing was started")
        return planned, composed

    def launch(
        self, inner: Any, config: DictConfig, context: HydraContext, batch: Sequence[Sequence[str]], first: int
    ) -> list[JobReturn]:
        """Run a batch and say what became of each job. Raises InputError where it is empty."""
        if not batch:  # of any number of words, one that has no values leaves no combination
            raise InputError("the sweep has no job: one of its words has no values, as range(0) has none; give it some")
        planned, composed = self.plan(config, context, batch, first)
        jobs = distinct([p for p in planned if isinstance(p, Planned)])
        label(jobs)
        assert self.folder is not None
        if self.check_only:
            print(plan_text(jobs, self.folder))
            return self._returns(planned, composed, config)
        write_plan(self.folder, self.command, jobs)
        if not self.begun:
            say(plan_text(jobs, self.folder))
        self.begun = True
        self.jobs += jobs
        todo = [p for p in jobs if p.state != FINISHED]
        self.fates |= {p.number: Fate(FINISHED) for p in jobs if p.state == FINISHED}
        if todo[:1] and todo[0].job.settings.sweep.fail_fast and self.failed:  # in an earlier batch
            self.fates |= {p.number: Fate(SKIPPED) for p in todo}
        elif todo and inner is None:
            self._here(todo, len(jobs) - len(todo))
        elif todo:
            self._elsewhere(inner, todo, first)
        return self._returns(planned, composed, config)

    @property
    def failed(self) -> bool:
        """Whether some job has."""
        return any(fate.state == FAILED for fate in self.fates.values())

    def _here(self, todo: list[Planned], skipped: int) -> None:
        settings = todo[0].job.settings.sweep
        processes = max(p.job.settings.trainer.processes for p in todo)
        room = slots(settings, {p.job.settings.trainer.device for p in todo}, processes)
        if settings.jobs is not None and len(room) < settings.jobs:
            say(f"{len(room)} at once: one for each slot of a GPU (sweep.jobs_per_gpu={settings.jobs_per_gpu})")
        local = Local(settings, room, View(todo, skipped, len(room)), self.stop)
        try:
            local.run(todo)
        finally:
            self.fates |= local.fates

    def _elsewhere(self, inner: Any, todo: list[Planned], first: int) -> None:
        """By Hydra's launcher; its own error says less than the jobs' records."""
        error: BaseException | None = None
        returned: Sequence[JobReturn] = ()
        try:
            with lost_jobs_fail(type(inner).__module__):
                returned = inner.launch([p.job.words for p in todo], initial_job_idx=first)
        except Exception as raised:
            error = raised
        left = 0
        for p, made in zip_longest(todo, returned):
            found = records.read_result(p.job.folder)
            now = state_of(p.job)
            if now == STARTED and found is not None and found["status"] == "running":
                why = settle(p.job, "killed or lost: its process ended without a word")
                self.fates[p.number] = Fate(FAILED, why)
            elif now == FAILED and found is not None and found != p.before:
                self.fates[p.number] = Fate(FAILED, str(found.get("error")))
            elif now in (FINISHED, RUNNING, STARTED):
                self.fates[p.number] = Fate(now)
            elif made is not None and made.status == JobStatus.FAILED:
                self.fates[p.number] = Fate(FAILED, str(made._return_value))
            else:
                left += 1
                self.fates[p.number] = Fate(SKIPPED)
        if error is not None and (left or not self.failed):
            text = " ".join(str(error).split())
            print(f"vaerun: error: the launcher gave up: {type(error).__name__}: {text}", file=sys.stderr)
            self.gave_up = True

    def _returns(
        self, planned: list[Planned | InputError], composed: list[DictConfig], config: DictConfig
    ) -> list[JobReturn]:
        """For the sweeper: a search learns of failures, Hydra's own sweeper would stop at the first."""
        search = is_search(config)
        by_folder = {p.job.folder: p.number for p in self.jobs}
        found = []
        for p, cfg in zip(planned, composed, strict=True):
            if isinstance(p, InputError):
                made = JobReturn(cfg=cfg, task_name="vaerun", status=JobStatus.FAILED)
                made.return_value = p
                found.append(made)
                continue
            made = JobReturn(overrides=p.job.words, cfg=cfg, working_dir=str(p.job.folder), task_name="vaerun")
            fate = self.fates.get(by_folder.get(p.job.folder, -1))
            record = records.read_result(p.job.folder) if fate is not None and fate.state == FINISHED else None
            made.status = JobStatus.COMPLETED
            if record is not None:
                made.return_value = validation_metric(record)
            elif search and fate is not None:
                made.status = JobStatus.FAILED
                made.return_value = RunError(fate.why or f"{p.label}: {fate.state}")
            found.append(made)
        return found

    def look(self, config: DictConfig) -> None:
        """Note the sweep's folder, and what of it is not there yet, before Hydra makes it.

        Raises InputError where it is none, or something of another kind is in the place of what a sweep writes.
        """
        folder = Path(str(config.hydra.sweep.dir)).absolute()
        there = next(p for p in (folder, *folder.parents) if p.exists())
        check_paths((there, folder / BOARD), (folder / name for name in (MULTIRUN, PLAN, *TABLES)))
        self.folder = folder
        self.absent = [p for p in (folder, *folder.parents) if not p.exists()]
        record = self.folder / MULTIRUN
        self.multirun = record.read_bytes() if record.is_file() else None

    def clear(self) -> None:
        """A sweep that was refused, or only looked at, leaves nothing that was not there before."""
        if self.begun or self.folder is None or not self.folder.is_dir():
            return
        if self.multirun is None:
            (self.folder / MULTIRUN).unlink(missing_ok=True)
        else:
            write_atomically(self.folder / MULTIRUN, self.multirun)
        for place in self.absent:
            try:
                place.rmdir()
            except OSError:  # not empty, or never made
                return

    def end(self) -> int:
        """Say how it ended, write the table; the exit code."""
        if self.check_only or self.folder is None or not self.begun:
            return 0
        tell_end(self.jobs, self.fates, self.folder, self.command)
        return 1 if self.gave_up or any(f.state != FINISHED for f in self.fates.values()) else 0


def is_search(config: DictConfig) -> bool:
    """Whether the sweeper chooses the jobs by what became of others."""
    return bool(config.hydra.sweeper._target_ != BASIC_SWEEPER)


def validation_metric(record: dict[str, Any]) -> float | None:
    """What a search maximises or minimises: the run's first validation metric."""
    value = next((v for name, v in record["metrics"].items() if name.startswith("val/")), None)
    return None if value is None else float(value)
