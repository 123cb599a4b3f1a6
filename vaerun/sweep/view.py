"""How a sweep goes: what is done, what runs and how far it is, what failed, and how long it will take."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from vaerun.storage.json_files import read_last_lines
from vaerun.sweep.plan import FAILED, FINISHED, RUNNING, STARTED, Planned
from vaerun.text import fixed

LIVE_SECONDS = 1.0  # between looks on a terminal
SAID = {FINISHED: "done", FAILED: "FAILED", STARTED: "stopped, saved", RUNNING: "running elsewhere"}
PLAIN_SECONDS = 60.0  # between lines where standard error is no terminal


def newest(folder: Path) -> dict[str, Any]:
    """The newest value of everything among the last lines of metrics.jsonl, with the newest step."""
    found: dict[str, Any] = {}
    for record in read_last_lines(folder / "metrics.jsonl"):
        found |= record
    return found


class View:
    """Lines on standard error: one for each job that begins or ends, and the state of those that run.

    Arguments:
        jobs: all of the sweep that are to be run.
        skipped: how many were finished before.
        slots: how many run at once.
    """

    def __init__(self, jobs: list[Planned], skipped: int, slots: int) -> None:
        self.total, self.skipped, self.slots = len(jobs) + skipped, skipped, slots
        self.left = {planned.number: planned for planned in jobs}
        self.running: dict[int, tuple[Planned, float]] = {}  # with when it began
        self.counts = {FINISHED: 0, FAILED: 0}
        self.seconds: dict[str, list[float]] = {}  # of jobs that finished, by kind
        self.live = sys.stderr.isatty()
        self._shown = 0.0
        self._lines = 0

    def began(self, planned: Planned) -> None:
        """A job's process has been started."""
        self.running[planned.number] = planned, time.monotonic()

    def elsewhere(self, planned: Planned) -> None:
        """Another process has the job."""
        self.running.pop(planned.number, None)

    def ended(self, planned: Planned, state: str, why: str, seconds: float) -> None:
        """A job has come to its end, this time."""
        self.left.pop(planned.number, None)
        began = self.running.pop(planned.number, None)
        if state in self.counts:
            self.counts[state] += 1
        if state == FINISHED and began is not None:
            self.seconds.setdefault(kind(planned), []).append(seconds)
        said = SAID.get(state, "not begun")
        took = f" ({duration(seconds)})" if seconds else ""
        done = self.counts[FINISHED] + self.counts[FAILED] + self.skipped
        self._print(f"{done}/{self.total} {said}: {planned.label}{took}{': ' + one_line(why) if why else ''}")

    def show(self) -> None:
        """The present state, at most as often as somebody can read it."""
        now = time.monotonic()
        if now - self._shown < (LIVE_SECONDS if self.live else PLAIN_SECONDS):
            return
        first, self._shown = self._shown == 0.0, now
        if not self.live and first:
            return
        lines = [self._state(planned) for planned, _ in list(self.running.values())]
        left = self._time_left(now)
        head = (
            f"{self.skipped + self.counts[FINISHED]} of {self.total} done, {len(self.running)} running, "
            f"{self.counts[FAILED]} failed{', about ' + duration(left) + ' left' if left is not None else ''}"
        )
        if self.live:
            self._erase()
            text = [head, *lines]
            rows, width = _terminal()
            if len(text) > rows - 1:  # what has scrolled away cannot be drawn over
                text = [*text[: max(1, rows - 2)], f"  and {len(text) - max(1, rows - 2)} more"]
            say("\n".join(line[: max(1, width - 1)] for line in text))
            self._lines = len(text)
        else:
            say("; ".join([head, *(" ".join(line.split()) for line in lines)]))

    def end(self) -> None:
        """Leave nothing half-drawn."""
        self._erase()

    def _print(self, line: str) -> None:
        self._erase()
        say(line)

    def _erase(self) -> None:
        if self._lines:
            say(f"\033[{self._lines}A\033[J", end="")
            self._lines = 0

    def _state(self, planned: Planned) -> str:
        found = newest(planned.job.folder)
        step, total = found.get("step", 0), planned.total_steps
        name = next((n for n in ("val/elbo", "train/elbo") if isinstance(found.get(n), float)), None)
        value = "" if name is None else f"  {name} {fixed(found[name], 1)}"
        if total and step >= total:
            return f"  {planned.label}: evaluating{value}"
        return f"  {planned.label}: {100 * step / total if total else 0:.0f}%{value}"

    def _time_left(self, now: float) -> float | None:
        """From the time of jobs of the same kind that are done (of all, where there is none), less what has passed."""
        everything = [seconds for some in self.seconds.values() for seconds in some]
        if not everything:
            return None
        left = 0.0
        for number, planned in self.left.items():
            some = self.seconds.get(kind(planned), everything)
            passed = now - self.running[number][1] if number in self.running else 0.0
            left += max(0.0, sum(some) / len(some) - passed)
        return left / max(1, min(self.slots, len(self.left)))


def kind(planned: Planned) -> str:
    """Jobs of one kind take about the same time: they differ in their seed alone."""
    return " ".join(word for word in planned.job.words if not word.startswith("seed="))


def _terminal() -> tuple[int, int]:
    """Rows and columns of standard error."""
    try:
        columns, rows = os.get_terminal_size(sys.stderr.fileno())
    except OSError:  # gone
        columns = rows = 0
    return rows or 24, columns or 80


def say(text: str, end: str = "\n", stream: TextIO | None = None) -> None:
    """Print on standard error; a reader that has gone is no reason to stop the jobs."""
    stream = stream or sys.stderr
    try:
        try:
            print(text, end=end, file=stream, flush=True)
        except UnicodeEncodeError:
            print(text.encode("ascii", "replace").decode(), end=end, file=stream, flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # so that no later line fails either
        os.close(nowhere)


def duration(seconds: float) -> str:
    """1 h 05 min, 12 min, 30 s."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def one_line(text: str) -> str:
    """Without line breaks and control codes."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
