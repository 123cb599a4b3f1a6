"""The jobs of a sweep on this machine, each a process of its own, so many at once.

A pool of threads deals out the jobs; each thread waits for one child process, which runs one job, or on a GPU as many
at once as sweep.together says. Another sweep in the same folder is no
harm: a job whose folder is held is left to whoever has it, and looked at again when it is free.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from vaerun.config.settings import SweepSettings
from vaerun.errors import EXIT_INTERRUPTED, EXIT_RESUMABLE, InputError, Interrupted
from vaerun.launch.process import BUSY_ELSEWHERE, GRACE_SECONDS, STOPPED, Child
from vaerun.launch.process import FINISHED as FINISHED_RUN
from vaerun.run import result as records
from vaerun.signals import ShutdownSignal
from vaerun.storage.run_dir import is_locked
from vaerun.sweep.plan import FAILED, FINISHED, NEW, RUNNING, STARTED, Planned
from vaerun.sweep.slots import Slot, taken
from vaerun.sweep.view import View

TICK_SECONDS = 0.2
SKIPPED = "skipped"  # not begun, because the sweep was stopped


@dataclass
class Fate:
    """What became of a job: FINISHED, FAILED (and why), STARTED (stopped, saved), RUNNING (elsewhere) or SKIPPED."""

    state: str
    why: str = ""
    seconds: float = 0.0


@dataclass
class Local:
    """Runs jobs in slots.

    Attributes:
        settings: `sweep`.
        slots: at least one.
        view: shows how it goes.
        stop: signals.
        children: that run now, by the number of their job.
        fates: of the jobs that have ended, by number.
    """

    settings: SweepSettings
    slots: list[Slot]
    view: View
    stop: ShutdownSignal
    children: dict[int, Child] = field(default_factory=dict)
    fates: dict[int, Fate] = field(default_factory=dict)
    ending: threading.Event = field(default_factory=threading.Event)
    failed_fast: bool = False
    passed_on: int = 0

    def run(self, jobs: list[Planned]) -> dict[int, Fate]:
        """The fate of each job by its number. Raises Interrupted, once all children have saved, where a signal came."""
        self.free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for slot in self.slots:
            self.free.put(slot)
        waiting = list(jobs)  # held by others
        with self.stop.deferred(), ThreadPoolExecutor(len(self.slots)) as pool:
            running: dict[Future[dict[int, Fate]], list[Planned]] = {}
            try:
                while waiting or running:
                    ready = [p for p in waiting if not (self.stopping or is_locked(p.job.folder))]
                    for group in self._groups(ready):
                        waiting = [p for p in waiting if p not in group]
                        running[pool.submit(self._attend, group)] = group
                    if self.stopping:
                        for planned in waiting:
                            self._note(planned, Fate(RUNNING if is_locked(planned.job.folder) else SKIPPED))
                        waiting = []
                    done, _ = wait(running, timeout=TICK_SECONDS, return_when=FIRST_COMPLETED)
                    if not running:
                        time.sleep(TICK_SECONDS)
                    for future in done:
                        group, fates = running.pop(future), future.result()
                        for planned in group:
                            fate = fates[planned.number]
                            if fate.state == RUNNING:
                                waiting.append(planned)
                                self.view.elsewhere(planned)
                                continue
                            self._note(planned, fate)
                        if self.failed_fast:
                            self._end(signal.SIGTERM)
                    if self.stop.signum is not None and self.stop.signum != self.passed_on:
                        self.passed_on = self.stop.signum
                        self._end(self.stop.signum)
                    self.view.show()
            except BaseException:  # the second Ctrl-C: at once
                self.kill()
                raise
        self.view.end()
        if self.stop.signum is not None:
            raise Interrupted(self.stop.signum)
        return self.fates

    def _groups(self, ready: list[Planned]) -> list[list[Planned]]:
        """Jobs that share a process: one, or on GPUs sweep.together of them, spread over the slots."""
        size = 1
        if all(slot.gpu is not None for slot in self.slots):
            size = max(1, min(self.settings.together, -(-len(ready) // len(self.slots))))
        return [ready[i : i + size] for i in range(0, len(ready), size)]

    def kill(self) -> None:
        """End all children at once."""
        self.ending.set()
        for child in list(self.children.values()):
            child.kill()

    def _note(self, planned: Planned, fate: Fate) -> None:
        self.fates[planned.number] = fate
        self.view.ended(planned, fate.state, fate.why, fate.seconds)

    def _end(self, signum: int) -> None:
        self.ending.set()
        for child in list(self.children.values()):
            child.signal(signum)

    @property
    def stopping(self) -> bool:
        """Whether no job may be begun any more: a signal came (which may have reached the jobs too), or one failed."""
        return self.ending.is_set() or self.stop.signum is not None

    def _attend(self, group: list[Planned]) -> dict[int, Fate]:
        slot, fates = self.free.get(), dict[int, Fate]()
        try:
            with taken(slot, lambda: self.stopping) as mine:
                if mine and not self.stopping:
                    fates = self._attempt(group, slot)
                else:
                    fates = {planned.number: Fate(SKIPPED) for planned in group}
        except Exception as error:  # a bug of ours, or of the machine's: no reason to take the other jobs along
            traceback.print_exc()
            for child in {self.children[p.number] for p in group if p.number in self.children}:
                child.abandon()
            fates = {planned.number: Fate(FAILED, f"{type(error).__name__}: {error}") for planned in group}
        finally:
            for planned in group:
                self.children.pop(planned.number, None)
            if self.settings.fail_fast and any(fate.state == FAILED for fate in fates.values()):
                self.failed_fast = True
                self.ending.set()  # before the slot is free for the next job
            self.free.put(slot)
        return fates

    def _settled(self, planned: Planned) -> Fate | None:
        """Whether somebody else has dealt with the job since it was dealt out, and how."""
        job = planned.job
        if is_locked(job.folder):
            return Fate(RUNNING)
        try:
            found = records.read_result(job.folder)
        except InputError as error:
            return Fate(FAILED, str(error))
        if found is not None and found["fingerprint"] == job.fingerprint and found != planned.before:
            if found["status"] == "ok":
                return Fate(FINISHED)
            if found["status"] == "failed":
                return Fate(FAILED, str(found.get("error")))
        return None

    def _attempt(self, group: list[Planned], slot: Slot) -> dict[int, Fate]:
        """One child for these jobs, less those that somebody else has dealt with since the sweep began."""
        began = time.monotonic()
        settled = {planned.number: self._settled(planned) for planned in group}
        fates = {number: fate for number, fate in settled.items() if fate is not None}
        mine = [planned for planned in group if planned.number not in fates]
        if not mine:
            return fates
        try:
            child = Child(mine[0].job, slot.environment, company=[planned.job for planned in mine[1:]])
        except InputError as error:
            return fates | {planned.number: Fate(FAILED, str(error)) for planned in mine}
        for planned in mine:
            self.children[planned.number] = child
            self.view.began(planned)
        if self.stopping:  # since the look
            child.signal(self.stop.signum or signal.SIGTERM)
        minutes, why, asked = self.settings.job_minutes, "", None
        while (ending := child.wait(TICK_SECONDS)) is None:
            now = time.monotonic()
            if asked is None and self.stopping:
                asked = now
            elif asked is None and minutes is not None and now - began > 60 * minutes:
                why = f"out of time (sweep.job_minutes={minutes:g}); the same command goes on from where it was saved"
                asked = now
                child.signal(signal.SIGTERM)
            elif asked is not None and now - asked > GRACE_SECONDS:
                child.kill()
        if (ending.code < 0 or ending.code in (EXIT_RESUMABLE, EXIT_INTERRUPTED)) and not self.stopping:
            # A signal to all processes may have been met here first: Python tells of it at the main thread's next tick.
            time.sleep(2 * TICK_SECONDS)
        seconds = time.monotonic() - began
        for planned, verdict in zip(mine, child.verdicts(ending, self.stop.signum, why), strict=True):
            if verdict.state == STOPPED:
                new = records.read_result(planned.job.folder) is None
                fates[planned.number] = Fate(NEW if new else STARTED, seconds=seconds)
            else:
                state = {FINISHED_RUN: FINISHED, BUSY_ELSEWHERE: RUNNING}.get(verdict.state, FAILED)
                fates[planned.number] = Fate(state, verdict.why, seconds)
        return fates
