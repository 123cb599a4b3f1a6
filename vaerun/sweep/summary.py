"""The plan printed before a sweep starts, and the summary printed when it ends."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from pathlib import Path

from vaerun.config.schema import Settings
from vaerun.errors import InputError
from vaerun.launch.job import JobOutcome, JobState
from vaerun.sweep.composition import describe_left_out
from vaerun.sweep.plan import JobChecker, PlannedJob, label_jobs
from vaerun.sweep.view import one_line
from vaerun.text import printable
from vaerun.tracking.progress import safe_print

ACTIONS = {
    JobState.NEW: "to run",
    JobState.RESUMABLE: "partly trained: will resume",
    JobState.FAILED: "failed before: will rerun",
    JobState.FINISHED: "finished: skipped",
    JobState.RUNNING: "running elsewhere: will wait",
}
UNFINISHED = (JobState.NEW, JobState.RESUMABLE, JobState.SKIPPED)


def plan_text(jobs: list[PlannedJob], folder: Path) -> str:
    """Say what was read of the data, list the jobs with their training steps and planned actions, and the totals.

    A line says which overrides were left out of which jobs.
    """
    data = dict.fromkeys(printable(line) for p in jobs for line in p.data_lines)
    width = max(len(p.label) for p in jobs)
    left_out = describe_left_out([(p.job.overrides, p.left_out) for p in jobs])
    lines = [f"  {p.label:<{width}}  {p.total_steps:>8} steps  {ACTIONS[p.state]}" for p in jobs]
    count = Counter(p.state for p in jobs)
    steps = sum(p.total_steps for p in jobs if p.state not in (JobState.FINISHED, JobState.RUNNING))
    totals = ", ".join(f"{count[state]} {action}" for state, action in ACTIONS.items() if count[state])
    head = f"{len(jobs)} jobs in {folder}" if len(jobs) > 1 else f"1 job: {folder}"
    return "\n".join([*data, head, *lines, *filter(None, [left_out]), f"{totals}; at most {steps} training steps"])


def check_single(settings: Settings, folder: Path, overrides: list[str]) -> str:
    """Text that `vaerun --check` prints for a single run. Raises InputError if it cannot run."""
    planned = JobChecker().check(settings, folder.absolute(), overrides, None, 0)
    label_jobs([planned])
    return plan_text([planned], folder)


def print_summary(jobs: list[PlannedJob], outcomes: dict[int, JobOutcome], folder: Path, command: list[str]) -> None:
    """Print the table of available results, failed and unfinished jobs, and how to resume."""
    count = Counter(outcome.state for outcome in outcomes.values())
    failed = [p for p in jobs if p.number in outcomes and outcomes[p.number].state == JobState.FAILED]
    unfinished = [p for p in jobs if p.number not in outcomes or outcomes[p.number].state in UNFINISHED]
    lines = [f"{count[JobState.FINISHED]} of {len(jobs)} jobs done in {folder}"]
    if failed:
        lines.append(f"{len(failed)} failed:")
        for p in failed:
            lines.append(f"  {p.label}: {one_line(outcomes[p.number].reason)}")
            lines.append(f"    {p.job.folder}")
    if unfinished:
        lines.append(f"{len(unfinished)} not finished: {', '.join(p.label for p in unfinished)}")
    if count[JobState.RUNNING]:
        lines.append(f"{count[JobState.RUNNING]} running elsewhere")
    if (failed or unfinished) and any(p.job.settings.trainer.resume == "never" for p in jobs):
        lines.append("to resume these, run the command without trainer.resume=never and with this output_dir")
    elif failed or unfinished:
        lines.append("to run only these (finished jobs are skipped):")
        lines.append(f"  {shlex.join(command)}")
    try:
        from vaerun.report import write_all  # slow: imports matplotlib and TensorBoard

        safe_print(write_all(folder), stream=sys.stdout)
    except InputError as error:
        lines.append(f"no table: {error}")
    finally:
        safe_print("\n".join(lines))
