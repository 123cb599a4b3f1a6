"""Time next to the metric, so that methods can be compared at equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vaerun.report.cells import Cell
from vaerun.report.protocol import canonical
from vaerun.report.runs import Run
from vaerun.report.text import clean


@dataclass(frozen=True)
class Cost:
    """Means over a cell's finished runs, None where a run does not tell.

    Attributes:
        train, evaluation: seconds of a run.
        rate: training steps a second.
        hardware: device, its name and CPU threads; several where the runs had several.
    """

    train: float | None
    rate: float | None
    evaluation: float | None
    hardware: str


def cost(cell: Cell) -> Cost:
    """What a cell's runs took."""
    seconds, rate, evaluation = (
        cell.mean_of("timing", key) for key in ("train_seconds", "steps_per_second", "evaluation_seconds")
    )
    return Cost(seconds, rate, evaluation, " and ".join(dict.fromkeys(hardware(run) for run in cell.finished)))


def hardware(run: Run) -> str:
    """What a run ran on; which of several like GPUs makes no difference."""
    kept = run.section("environment")
    device, name, threads = (kept.get(key) for key in ("device", "device_name", "threads"))
    if device is None:
        return "not recorded"
    kind = clean(str(device).partition(":")[0], 20)
    return f"{kind} {clean(name, 60)}, {clean(threads, 8)} threads"


def timing_warnings(cells: Sequence[Cell]) -> list[str]:
    """A line for what makes the times incomparable."""
    found = []
    kinds: dict[str, list[str]] = {}
    for cell in cells:
        for kind in {hardware(run) for run in cell.finished}:
            kinds.setdefault(kind, []).append(cell.name)
    if len(kinds) > 1:
        parts = [f"{k} ({', '.join(v[:4])}{f' and {len(v) - 4} more' if len(v) > 4 else ''})" for k, v in kinds.items()]
        found.append(f"times do not compare where hardware or threads differ: {'; '.join(parts)}")
    several = {canonical(run.settings.get("sweep.jobs")) for cell in cells for run in cell.finished}
    several -= {canonical(None), canonical(1)}
    if several:
        shown = ", ".join(clean(jobs, 20) for jobs in sorted(several))
        found.append(f"jobs ran side by side (sweep.jobs={shown}): times hold for that")
    return found
