"""What a sweep says before it starts and when it ends."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from pathlib import Path

from vaerun.config.settings import Settings
from vaerun.errors import InputError
from vaerun.sweep.local import SKIPPED, Fate
from vaerun.sweep.plan import FAILED, FINISHED, NEW, RUNNING, STARTED, Checker, Planned, label
from vaerun.sweep.view import one_line, say

WILL = {
    NEW: "to run",
    STARTED: "half-trained: goes on",
    FAILED: "failed before: runs again",
    FINISHED: "finished: skipped",
    RUNNING: "running elsewhere: waited for",
}


def plan_text(jobs: list[Planned], folder: Path) -> str:
    """The jobs, each with its training steps and what will be done about it, and the sums."""
    width = max(len(p.label) for p in jobs)
    lines = [f"  {p.label:<{width}}  {p.total_steps:>8} steps  {WILL[p.state]}" for p in jobs]
    count = Counter(p.state for p in jobs)
    steps = sum(p.total_steps for p in jobs if p.state not in (FINISHED, RUNNING))
    sums = ", ".join(f"{count[state]} {text}" for state, text in WILL.items() if count[state])
    head = f"{len(jobs)} jobs in {folder}" if len(jobs) > 1 else f"1 job: {folder}"
    return "\n".join([head, *lines, f"{sums}; at most {steps} training steps"])


def check_single(settings: Settings, folder: Path, words: list[str]) -> str:
    """What `vaerun --check` says of one run. Raises InputError where it cannot work."""
    planned = Checker().check(settings, folder.absolute(), words, None, 0)
    label([planned])
    return plan_text([planned], folder)


def tell_end(jobs: list[Planned], fates: dict[int, Fate], folder: Path, command: list[str]) -> None:
    """What failed, what was not done, how to go on; and the table, as far as it goes."""
    count = Counter(fate.state for fate in fates.values())
    failed = [p for p in jobs if p.number in fates and fates[p.number].state == FAILED]
    again = [p for p in jobs if p.number not in fates or fates[p.number].state in (STARTED, SKIPPED, NEW)]
    lines = [f"{count[FINISHED]} of {len(jobs)} jobs done in {folder}"]
    if failed:
        lines.append(f"{len(failed)} failed:")
        for p in failed:
            lines.append(f"  {p.label}: {one_line(fates[p.number].why)}")
            lines.append(f"    {p.job.folder}")
    if again:
        lines.append(f"{len(again)} not finished: {', '.join(p.label for p in again)}")
    if count[RUNNING]:
        lines.append(f"{count[RUNNING]} running elsewhere")
    if (failed or again) and any(p.job.settings.trainer.resume == "never" for p in jobs):
        lines.append("to go on with these, give the command without trainer.resume=never and with this output_dir")
    elif failed or again:
        lines.append("to run just these (what is finished is skipped):")
        lines.append(f"  {shlex.join(command)}")
    try:
        from vaerun.report import write_all  # charts, TensorBoard

        say(write_all(folder), stream=sys.stdout)
    except InputError as error:
        lines.append(f"no table: {error}")
    finally:
        say("\n".join(lines))
