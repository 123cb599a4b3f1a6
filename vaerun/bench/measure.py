"""Timing of a case in rounds, and the table of it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from vaerun.bench.case import Case, Setting
from vaerun.bench.machine import Rates, timed
from vaerun.bench.memory import peak
from vaerun.bench.scaling import exponent

NAMES = {"factor": "batch of Cholesky factors", "solve": "batch of triangular solves"}


@dataclass
class Measured:
    """Of one case.

    Attributes:
        case: what was measured.
        seconds: of each form, one a round.
        floor: seconds, at the rates measured in the same rounds; None where no operations are counted.
        rates: medians, see machine.Rates.
        differences: of the forms, see Case.compare.
        memory: peak bytes of each form; None where the system does not count them.
        notes: lines to be printed below the table: the case's, and exponents.
    """

    case: Case
    seconds: dict[str, list[float]]
    floor: float | None = None
    rates: dict[str, float] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def ratios(self, form: str) -> list[float]:
        """How many times as long as the first form it took, round by round."""
        first = next(iter(self.seconds.values()))
        return [b / a for a, b in zip(first, self.seconds[form], strict=True)]

    def record(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "case": self.case.name,
            "unit": self.case.unit,
            "seconds": self.seconds,
            "floor_seconds": self.floor,
            "rates": self.rates,
            "differences": self.differences,
            "peak_bytes": self.memory,
            "notes": self.notes,
        }


def measure(benchmark: str, case: Case, setting: Setting, rounds: int) -> Measured:
    """Compare the forms, time them in turn for so many rounds, measure their memory."""
    differences = {} if case.compare is None else case.compare()
    calls = {name: make() for name, make in case.forms.items()}
    found = Measured(case, {name: [] for name in calls}, differences=differences, notes=list(case.notes))
    rates = None if case.work is None else Rates(setting, case.work.matrices, case.work.size)
    for call in calls.values():
        call(), call()  # first calls also compile, allocate and fill caches
    for _ in range(rounds):
        if rates is not None:
            rates.sample()
        for name, call in calls.items():
            found.seconds[name].append(timed(call, setting))
    if rates is not None and case.work is not None:
        found.floor = rates.floor(case.work)
        found.rates = {name: rates.rate(name) for name in rates.calls}
    if case.memory:
        found.memory = {name: peak(benchmark, case.name, name, setting) for name in calls}
    if case.values:
        values = case.values
        grown = exponent(values, [statistics.median(times) for times in found.seconds.values()])
        found.notes.append(f"exponent of the median time: {grown:.2f}")
        if all(found.memory.values()):
            grown = exponent(values, [float(b or 0) for b in found.memory.values()])
            found.notes.append(f"exponent of the peak memory: {grown:.2f}")
    return found


def _seconds(value: float) -> str:
    return f"{value:.3f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def table(found: Measured) -> str:
    """Markdown: median and range of the times, median and range of the ratios to the first form, floor, memory."""
    case = found.case
    lines = ["", f"## {case.name}", ""]
    if found.seconds:
        head = [f"{case.unit}: median (from - to)", "times the first: median (from - to)"]
        head += [] if found.floor is None else ["of the floor"]
        head += ["images/s"] if case.items else []
        head += ["peak memory"] if case.memory else []
        lines += ["| form | " + " | ".join(head) + " |", "| --- " * (len(head) + 1) + "|"]
        for number, (name, times) in enumerate(found.seconds.items()):
            ratios, median = found.ratios(name), statistics.median(times)
            row = [name, f"{_seconds(median)} ({_seconds(min(times))} - {_seconds(max(times))})"]
            row.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})" if number else "")
            if found.floor is not None:
                row.append(f"{found.floor / median:.0%}")
            if case.items:
                row.append(f"{case.items / median:.0f}")
            if case.memory:
                used = found.memory.get(name)
                row.append("not counted here" if used is None else f"{used / 2**20:.0f} MiB")
            lines.append("| " + " | ".join(row) + " |")
        lines.append("")
    if found.floor is not None:
        parts = [f"floor {_seconds(found.floor)}", f"products {found.rates['product'] / 1e9:.0f} GFLOP/s"]
        parts.append(f"copies {found.rates['copy'] / 1e9:.1f} GB/s")
        parts += [f"{1e3 / found.rates[n]:.3g} ms a {w}" for n, w in NAMES.items() if n in found.rates]
        lines.append(f"- {', '.join(parts)} (medians of the same rounds)")
    lines += [f"- difference: {name}: {value:.1e}" for name, value in found.differences.items()]
    return "\n".join([*lines, *(f"- {note}" for note in found.notes)])
