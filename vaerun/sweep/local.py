"""The jobs of a sweep on this machine, each a process of its own, so many at once.

A pool of threads deals out the jobs; each thread waits for one child process. Another sweep in the same folder is no
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

from vaerun.errors import InputError, Interrupted
from vaerun.files import held
from vaerun.run import record as records
from vaerun.run.child import BUSY_ELSEWHERE, GRACE_SECONDS, STOPPED, Child
from vaerun.run.child import FINISHED as FINISHED_RUN
from vaerun.run.worker import AGAIN
from vaerun.settings import SweepSettings
from vaerun.sweep.plan import FAILED, FINISHED, NEW, RUNNING, STARTED, Planned
from vaerun.sweep.slots import Slot, taken
from vaerun.sweep.view import View
from vaerun.training.signals import Stop

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
    stop: Stop
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
            running: dict[Future[Fate], Planned] = {}
            try:
                while waiting or running:
                    for planned in [p for p in waiting if not (self.stopping or held(p.job.folder))]:
                        waiting.remove(planned)
                        running[pool.submit(self._attend, planned)] = planned
                    if self.stopping:
                        for planned in waiting:
                            self._note(planned, Fate(RUNNING if held(planned.job.folder) else SKIPPED))
                        waiting = []
                    done, _ = wait(running, timeout=TICK_SECONDS, return_when=FIRST_COMPLETED)
                    if not running:
                        time.sleep(TICK_SECONDS)
                    for future in done:
                        planned, fate = running.pop(future), future.result()
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

    def _attend(self, planned: Planned) -> Fate:
        slot, fate = self.free.get(), None
        try:
            with taken(slot, lambda: self.stopping) as mine:
                fate = self._attempt(planned, slot) if mine and not self.stopping else Fate(SKIPPED)
        except Exception as error:  # a bug of ours, or of the machine's: no reason to take the other jobs along
            traceback.print_exc()
            if planned.number in self.children:
                self.children[planned.number].abandon()
            fate = Fate(FAILED, f"{type(error).__name__}: {error}")
        finally:
            self.children.pop(planned.number, None)
            if self.settings.fail_fast and fate is not None and fate.state == FAILED:
                self.failed_fast = True
                self.ending.set()  # before the slot is free for the next job
            self.free.put(slot)
        return fate

    def _attempt(self, planned: Planned, slot: Slot) -> Fate:
        """One child for this job, unless somebody else has dealt with it since the sweep began."""
        job, began = planned.job, time.monotonic()
        if held(job.folder):  # since it was dealt out
            return Fate(RUNNING)
        try:
            found = records.read_result(job.folder)
            if found is not None and found["fingerprint"] == job.fingerprint and found != planned.before:
                if found["status"] == "ok":
                    return Fate(FINISHED)
                if found["status"] == "failed":
                    return Fate(FAILED, str(found.get("error")))
            child = Child(job, slot.environment)
        except InputError as error:
            return Fate(FAILED, str(error))
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
        if (ending.code < 0 or ending.code in (AGAIN, 130)) and not self.stopping:
            # A signal to all processes may have been met here first: Python tells of it at the main thread's next tick.
            time.sleep(2 * TICK_SECONDS)
        verdict = child.verdict(ending, self.stop.signum, why)
        seconds = time.monotonic() - began
        if verdict.state == STOPPED:
            return Fate(NEW if records.read_result(job.folder) is None else STARTED, seconds=seconds)
        state = {FINISHED_RUN: FINISHED, BUSY_ELSEWHERE: RUNNING}.get(verdict.state, FAILED)
        return Fate(state, verdict.why, seconds)
