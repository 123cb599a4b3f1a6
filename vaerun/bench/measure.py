"""Timing a case in rounds, and its table."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from vaerun.bench.case import BenchSettings, Case
from vaerun.bench.machine import Rates, time_call
from vaerun.bench.memory import peak_memory
from vaerun.bench.scaling import exponent

OPERATION_NAMES = {"factor": "batch of Cholesky factorisations", "solve": "batch of triangular solves"}


@dataclass
class Measurement:
    """The measurements of a case.

    Attributes:
        case: what was measured.
        seconds: of each variant, one per round.
        floor: seconds, at the rates measured in the same rounds; None if the case counts no work.
        rates: medians, see machine.Rates.
        differences: between the variants, see Case.compare.
        memory: peak bytes of each variant; None if the system does not count them.
        notes: lines to print below the table: the case's, and exponents.
    """

    case: Case
    seconds: dict[str, list[float]]
    floor: float | None = None
    rates: dict[str, float] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def ratios(self, variant: str) -> list[float]:
        """Time relative to the first variant, round by round."""
        first = next(iter(self.seconds.values()))
        return [b / a for a, b in zip(first, self.seconds[variant], strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """All measurements as plain values."""
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


def measure(benchmark: str, case: Case, setting: BenchSettings, rounds: int) -> Measurement:
    """Compare the variants, time them in turn for `rounds` rounds, and measure their memory."""
    differences = {} if case.compare is None else case.compare()
    calls = {name: make() for name, make in case.variants.items()}
    measurement = Measurement(case, {name: [] for name in calls}, differences=differences, notes=list(case.notes))
    rates = None if case.work is None else Rates(setting, case.work.batch, case.work.dim)
    for call in calls.values():
        call(), call()  # warm-up: compiles, allocates, fills caches
    for _ in range(rounds):
        if rates is not None:
            rates.sample()
        for name, call in calls.items():
            measurement.seconds[name].append(time_call(call, setting))
    if rates is not None and case.work is not None:
        measurement.floor = rates.floor(case.work)
        measurement.rates = {name: rates.rate(name) for name in rates.calls}
    if case.memory:
        measurement.memory = {name: peak_memory(benchmark, case.name, name, setting) for name in calls}
    if case.values:
        values = case.values
        power = exponent(values, [statistics.median(times) for times in measurement.seconds.values()])
        measurement.notes.append(f"exponent of the median time: {power:.2f}")
        if all(measurement.memory.values()):
            power = exponent(values, [float(b or 0) for b in measurement.memory.values()])
            measurement.notes.append(f"exponent of the peak memory: {power:.2f}")
    return measurement


def _seconds(value: float) -> str:
    return f"{value:.3f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def to_markdown(measurement: Measurement) -> str:
    """Markdown table: median and range of the times and of their ratios to the first variant, floor, memory."""
    case = measurement.case
    lines = ["", f"## {case.name}", ""]
    if measurement.seconds:
        header = [f"{case.unit}: median (from - to)", "relative to the first: median (from - to)"]
        header += [] if measurement.floor is None else ["of the floor"]
        header += ["images/s"] if case.items else []
        header += ["peak memory"] if case.memory else []
        lines += ["| variant | " + " | ".join(header) + " |", "| --- " * (len(header) + 1) + "|"]
        for index, (name, times) in enumerate(measurement.seconds.items()):
            ratios, median = measurement.ratios(name), statistics.median(times)
            row = [name, f"{_seconds(median)} ({_seconds(min(times))} - {_seconds(max(times))})"]
            row.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})" if index else "")
            if measurement.floor is not None:
                row.append(f"{measurement.floor / median:.0%}")
            if case.items:
                row.append(f"{case.items / median:.0f}")
            if case.memory:
                used = measurement.memory.get(name)
                row.append("not available" if used is None else f"{used / 2**20:.0f} MiB")
            lines.append("| " + " | ".join(row) + " |")
        lines.append("")
    if measurement.floor is not None:
        parts = [f"floor {_seconds(measurement.floor)}", f"products {measurement.rates['product'] / 1e9:.0f} GFLOP/s"]
        parts.append(f"copies {measurement.rates['copy'] / 1e9:.1f} GB/s")
        parts += [
            f"{1e3 / measurement.rates[n]:.3g} ms per {w}" for n, w in OPERATION_NAMES.items() if n in measurement.rates
        ]
        lines.append(f"- {', '.join(parts)} (medians of the same rounds)")
    lines += [f"- difference: {name}: {value:.1e}" for name, value in measurement.differences.items()]
    return "\n".join([*lines, *(f"- {note}" for note in measurement.notes)])
