"""Progress display of a sweep: finished, running and failed jobs, and the estimated time left."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from vaerun.launch.job import JobOutcome, JobState
from vaerun.storage.json_files import read_last_lines
from vaerun.sweep.plan import PlannedJob
from vaerun.text import format_fixed
from vaerun.tracking.progress import StatusBlock, format_duration

PLAIN_SECONDS = 60.0  # interval between lines if standard error is not a terminal
DESCRIPTIONS = {
    JobState.FINISHED: "done",
    JobState.FAILED: "FAILED",
    JobState.RESUMABLE: "stopped, saved",
    JobState.RUNNING: "running elsewhere",
}


def latest_metrics(folder: Path) -> dict[str, Any]:
    """Latest values of the step and all metrics in the last lines of metrics.jsonl."""
    values: dict[str, Any] = {}
    for record in read_last_lines(folder / "metrics.jsonl"):
        values |= record
    return values


class SweepProgress:
    """Prints a line for each job that ends, and the status of the running ones, on standard error.

    Arguments:
        jobs: all jobs that the sweep runs.
        skipped: number of jobs that had finished before.
        slots: number of jobs that run at once.
    """

    def __init__(self, jobs: list[PlannedJob], skipped: int, slots: int) -> None:
        self.total, self.skipped, self.slots = len(jobs) + skipped, skipped, slots
        self.left = {planned.number: planned for planned in jobs}
        self.running: dict[int, tuple[PlannedJob, float]] = {}  # with start times
        self.counts = {JobState.FINISHED: 0, JobState.FAILED: 0}
        self.seconds: dict[str, list[float]] = {}  # run times of finished jobs, by group
        self.block = StatusBlock(PLAIN_SECONDS)

    def on_start(self, planned: PlannedJob) -> None:
        """A job's process has been started."""
        self.running[planned.number] = planned, time.monotonic()

    def on_elsewhere(self, planned: PlannedJob) -> None:
        """Another process runs the job."""
        self.running.pop(planned.number, None)

    def on_end(self, planned: PlannedJob, outcome: JobOutcome) -> None:
        """A job has ended (it may run again)."""
        self.left.pop(planned.number, None)
        was_running = self.running.pop(planned.number, None) is not None
        if outcome.state in self.counts:
            self.counts[outcome.state] += 1
        if outcome.state == JobState.FINISHED and was_running:
            self.seconds.setdefault(without_seed(planned), []).append(outcome.seconds)
        description = DESCRIPTIONS.get(outcome.state, "not started")
        duration = f" ({format_duration(outcome.seconds)})" if outcome.seconds else ""
        reason = f": {one_line(outcome.reason)}" if outcome.reason else ""
        ended = self.counts[JobState.FINISHED] + self.counts[JobState.FAILED] + self.skipped
        self.block.print(f"{ended}/{self.total} {description}: {planned.label}{duration}{reason}")

    def show(self) -> None:
        """Update the status, if an update is due."""
        if not self.block.due():
            return
        left = self._time_left(time.monotonic())
        head = (
            f"{self.skipped + self.counts[JobState.FINISHED]} of {self.total} done, {len(self.running)} running, "
            f"{self.counts[JobState.FAILED]} failed"
            f"{', about ' + format_duration(left) + ' left' if left is not None else ''}"
        )
        self.block.draw([head, *(self._status(planned) for planned, _ in list(self.running.values()))])

    def close(self) -> None:
        """Remove the status."""
        self.block.erase()

    def _status(self, planned: PlannedJob) -> str:
        values = latest_metrics(planned.job.folder)
        step, total = values.get("step", 0), planned.total_steps
        name = next((n for n in ("val/elbo", "train/elbo") if isinstance(values.get(n), float)), None)
        metric = "" if name is None else f"  {name} {format_fixed(values[name], 1)}"
        if total and step >= total:
            return f"  {planned.label}: evaluating{metric}"
        return f"  {planned.label}: {100 * step / total if total else 0:.0f}%{metric}"

    def _time_left(self, now: float) -> float | None:
        """Estimate the remaining time from finished jobs that differ only in the seed or, failing that, from all."""
        everything = [seconds for group in self.seconds.values() for seconds in group]
        if not everything:
            return None
        left = 0.0
        for number, planned in self.left.items():
            similar = self.seconds.get(without_seed(planned), everything)
            elapsed = now - self.running[number][1] if number in self.running else 0.0
            left += max(0.0, sum(similar) / len(similar) - elapsed)
        return left / max(1, min(self.slots, len(self.left)))


def without_seed(planned: PlannedJob) -> str:
    """A job's overrides except its seed; jobs that share them should take about the same time."""
    return " ".join(word for word in planned.job.overrides if not word.startswith("seed="))


def one_line(text: str) -> str:
    """Remove line breaks and control codes."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
