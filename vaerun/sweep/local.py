"""Runs the jobs of a sweep on this machine, each in its own process, as many at once as there are slots.

Each thread of a pool waits for one child process, which runs one job or, on a GPU, up to sweep.together jobs. Other
sweeps may share run directories with this one: a job whose directory is locked is left to the other process, and
checked again once the lock is released.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

from vaerun.config.schema import SweepSettings
from vaerun.errors import EXIT_INTERRUPTED, EXIT_RESUMABLE, InputError, Interrupted
from vaerun.launch.job import JobOutcome, JobState
from vaerun.launch.process import GRACE_SECONDS, JobProcess
from vaerun.memory import is_out_of_memory
from vaerun.run.result import read_result
from vaerun.signals import ShutdownSignal
from vaerun.storage.run_dir import is_locked
from vaerun.sweep.plan import PlannedJob
from vaerun.sweep.slots import Slot, acquire_slot
from vaerun.sweep.view import SweepProgress

TICK_SECONDS = 0.2


@dataclass
class LocalLauncher:
    """Runs jobs in slots.

    Attributes:
        settings: `sweep`.
        slots: one or more slots.
        progress: progress display.
        stop: shutdown signals.
        children: running processes, by job number.
        outcomes: outcomes of the jobs that have ended, by job number.
    """

    settings: SweepSettings
    slots: list[Slot]
    progress: SweepProgress
    stop: ShutdownSignal
    children: dict[int, JobProcess] = field(default_factory=dict)
    outcomes: dict[int, JobOutcome] = field(default_factory=dict)
    draining: threading.Event = field(default_factory=threading.Event)  # set once no more jobs may start
    failed_fast: bool = False
    forwarded: int = 0  # the last signal sent to the children

    def run(self, jobs: list[PlannedJob]) -> dict[int, JobOutcome]:
        """Run the jobs and return their outcomes by job number.

        Raises Interrupted if a signal was received, after all children have saved.
        """
        self.free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for slot in self.slots:
            self.free.put(slot)
        waiting = list(jobs)  # not yet submitted, or locked by another process
        with self.stop.deferred(), ThreadPoolExecutor(len(self.slots)) as pool:
            running: dict[Future[dict[int, JobOutcome]], list[PlannedJob]] = {}
            try:
                while waiting or running:
                    ready = [p for p in waiting if not (self.stopping or is_locked(p.job.folder))]
                    for group in self._groups(ready):
                        waiting = [p for p in waiting if p not in group]
                        running[pool.submit(self._run_in_slot, group)] = group
                    if self.stopping:
                        for planned in waiting:
                            state = JobState.RUNNING if is_locked(planned.job.folder) else JobState.SKIPPED
                            self._finish(planned, JobOutcome(state))
                        waiting = []
                    done, _ = wait(running, timeout=TICK_SECONDS, return_when=FIRST_COMPLETED)
                    if not running:
                        time.sleep(TICK_SECONDS)
                    for future in done:
                        group, outcomes = running.pop(future), future.result()
                        for planned in group:
                            outcome = outcomes[planned.number]
                            if outcome.state == JobState.RUNNING:
                                waiting.append(planned)
                                self.progress.on_elsewhere(planned)
                                continue
                            self._finish(planned, outcome)
                        if self.failed_fast:
                            self._stop_children(signal.SIGTERM)
                    if self.stop.signum is not None and self.stop.signum != self.forwarded:
                        self.forwarded = self.stop.signum
                        self._stop_children(self.stop.signum)
                    self.progress.show()
            except BaseException:  # a second Ctrl-C: do not wait for the children
                self.kill()
                raise
        self.progress.close()
        if self.stop.signum is not None:
            raise Interrupted(self.stop.signum)
        return self.outcomes

    def _groups(self, ready: list[PlannedJob]) -> list[list[PlannedJob]]:
        """Group jobs by process: one per group or, on GPUs, up to sweep.together, spread evenly over the slots."""
        size = 1
        if all(slot.gpu is not None for slot in self.slots):
            size = max(1, min(self.settings.together, -(-len(ready) // len(self.slots))))
        return [ready[i : i + size] for i in range(0, len(ready), size)]

    def kill(self) -> None:
        """Kill all children."""
        self.draining.set()
        for child in list(self.children.values()):
            child.kill()

    def _finish(self, planned: PlannedJob, outcome: JobOutcome) -> None:
        self.outcomes[planned.number] = outcome
        self.progress.on_end(planned, outcome)

    def _stop_children(self, signum: int) -> None:
        self.draining.set()
        for child in list(self.children.values()):
            child.signal(signum)

    @property
    def stopping(self) -> bool:
        """Whether no more jobs may start: a signal was received (perhaps by the jobs as well), or a job failed."""
        return self.draining.is_set() or self.stop.signum is not None

    def _run_in_slot(self, group: list[PlannedJob]) -> dict[int, JobOutcome]:
        slot, outcomes = self.free.get(), dict[int, JobOutcome]()
        try:
            with acquire_slot(slot, lambda: self.stopping) as acquired:
                if acquired and not self.stopping:
                    outcomes = self._run_process(group, slot)
                else:
                    outcomes = {planned.number: JobOutcome(JobState.SKIPPED) for planned in group}
        except Exception as error:  # a bug or a system error must not affect the other jobs
            if not is_out_of_memory(error):
                traceback.print_exc()
            for child in {self.children[p.number] for p in group if p.number in self.children}:
                child.abandon()
            reason = f"{type(error).__name__}: {error}"
            if is_out_of_memory(error):
                reason = "memory ran out for the process that started this job: lower sweep.jobs"
            outcomes = {planned.number: JobOutcome(JobState.FAILED, reason) for planned in group}
        finally:
            for planned in group:
                self.children.pop(planned.number, None)
            if self.settings.fail_fast and any(outcome.state == JobState.FAILED for outcome in outcomes.values()):
                self.failed_fast = True
                self.draining.set()  # before the slot is released for the next job
            self.free.put(slot)
        return outcomes

    def _outcome_elsewhere(self, planned: PlannedJob) -> JobOutcome | None:
        """Outcome of a job that another process has taken since it was submitted, otherwise None."""
        job = planned.job
        if is_locked(job.folder):
            return JobOutcome(JobState.RUNNING)
        try:
            result = read_result(job.folder)
        except InputError as error:
            return JobOutcome(JobState.FAILED, str(error))
        if result is not None and result["fingerprint"] == job.fingerprint and result != planned.previous_result:
            if result["status"] == "ok":
                return JobOutcome(JobState.FINISHED)
            if result["status"] == "failed":
                return JobOutcome(JobState.FAILED, str(result.get("error")))
        return None

    def _run_process(self, group: list[PlannedJob], slot: Slot) -> dict[int, JobOutcome]:
        """Run these jobs in one child process, except those that another process has taken since the sweep began."""
        began = time.monotonic()
        elsewhere = {planned.number: self._outcome_elsewhere(planned) for planned in group}
        outcomes = {number: outcome for number, outcome in elsewhere.items() if outcome is not None}
        group = [planned for planned in group if planned.number not in outcomes]
        if not group:
            return outcomes
        try:
            child = JobProcess([planned.job for planned in group], slot.environment)
        except InputError as error:
            return outcomes | {planned.number: JobOutcome(JobState.FAILED, str(error)) for planned in group}
        for planned in group:
            self.children[planned.number] = child
            self.progress.on_start(planned)
        if self.stopping:  # since the last check
            child.signal(self.stop.signum or signal.SIGTERM)
        minutes, reason, asked_at = self.settings.job_minutes, "", None
        while (code := child.wait(TICK_SECONDS)) is None:
            now = time.monotonic()
            if asked_at is None and self.stopping:
                asked_at = now
            elif asked_at is None and minutes is not None and now - began > 60 * minutes:
                reason = f"out of time (sweep.job_minutes={minutes:g}); run the same command again to resume"
                asked_at = now
                child.signal(signal.SIGTERM)
            elif asked_at is not None and now - asked_at > GRACE_SECONDS:
                child.kill()
        if (code < 0 or code in (EXIT_RESUMABLE, EXIT_INTERRUPTED)) and not self.stopping:
            # A signal sent to all processes may end the child before Python has handled it in our main thread.
            time.sleep(2 * TICK_SECONDS)
        seconds = time.monotonic() - began
        for planned, outcome in zip(group, child.outcomes(code, self.stop.signum, reason), strict=True):
            outcomes[planned.number] = replace(outcome, seconds=seconds)
        return outcomes
