"""Training and evaluation times, so that methods can be compared at equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vaerun.report.cells import Cell
from vaerun.report.protocol import canonical
from vaerun.report.runs import RunSummary
from vaerun.report.text import abbreviate, clean


@dataclass(frozen=True)
class Cost:
    """Means over a cell's finished runs; None if a run has not recorded it.

    Attributes:
        train, evaluation: seconds per run.
        rate: training steps per second.
        hardware: device, its name and CPU threads; all of them if the runs differ.
    """

    train: float | None
    rate: float | None
    evaluation: float | None
    hardware: str


def mean_cost(cell: Cell) -> Cost:
    """The mean cost of a cell's runs."""
    seconds, rate, evaluation = (
        cell.mean_of("timing", key) for key in ("train_seconds", "steps_per_second", "evaluation_seconds")
    )
    return Cost(seconds, rate, evaluation, " and ".join(dict.fromkeys(describe_hardware(run) for run in cell.finished)))


def describe_hardware(run: RunSummary) -> str:
    """The hardware of a run; the index of a GPU is left out."""
    environment = run.section("environment")
    device, name, threads = (environment.get(key) for key in ("device", "device_name", "threads"))
    if device is None:
        return "not recorded"
    device_type = clean(str(device).partition(":")[0], 20)
    return f"{device_type} {clean(name, 60)}, {clean(threads, 8)} threads"


def timing_warnings(cells: Sequence[Cell]) -> list[str]:
    """Footnotes on what makes the times incomparable."""
    notes = []
    cells_by_hardware: dict[str, list[str]] = {}
    for cell in cells:
        for machine in {describe_hardware(run) for run in cell.finished}:
            cells_by_hardware.setdefault(machine, []).append(cell.name)
    if len(cells_by_hardware) > 1:
        parts = [f"{machine} ({abbreviate(names)})" for machine, names in cells_by_hardware.items()]
        notes.append(f"times are not comparable if hardware or threads differ: {'; '.join(parts)}")
    jobs = {canonical(run.settings.get("sweep.jobs")) for cell in cells for run in cell.finished}
    jobs -= {canonical(None), canonical(1)}
    if jobs:
        shown = ", ".join(clean(number, 20) for number in sorted(jobs))
        notes.append(f"times include the load of concurrent jobs (sweep.jobs={shown})")
    return notes
