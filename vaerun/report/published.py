"""Published numbers and what is known of how they were measured, from published.yaml in this folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vaerun.errors import InputError
from vaerun.report.cells import TITLES
from vaerun.report.protocol import canonical
from vaerun.report.runs import Run
from vaerun.report.text import clean
from vaerun.storage.yaml_files import read_yaml
from vaerun.text import did_you_mean


@dataclass(frozen=True)
class Published:
    """A table of numbers of others.

    Attributes:
        name: in published.yaml.
        title, source: in words.
        data, rows, columns, metric: what it is of; a table of ours agrees in all four.
        values: (row, column) as canonical settings -> number.
        order: the rows, in the source's order.
        protocol, notes, methods, unpublished: see published.yaml.
    """

    name: str
    title: str
    source: str
    data: str
    rows: str
    columns: str
    metric: str
    values: dict[tuple[str, str], float]
    order: tuple[str, ...]
    protocol: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    methods: dict[str, str]
    unpublished: dict[str, str]

    def mismatch(self, rows: Sequence[str], columns: Sequence[str], metric: str, data: Iterable[Any]) -> str:
        """Why it cannot stand beside a table of these rows, columns, metric and data sets; '' where it can."""
        for what, own, asked in (
            ("rows are", self.rows, ",".join(rows)),
            ("columns are", self.columns, ",".join(columns) or "none"),
            ("metric is", self.metric, metric),
            ("data set is", self.data, ", ".join(sorted({clean(d, 60) for d in data})) or self.data),
        ):
            if own != asked:
                return f"its {what} {own}, here {asked}"
        return ""

    def differences(self, runs: Sequence[Run]) -> list[str]:
        """A line for each difference between our protocol and the source's, as far as it is known."""
        found = []
        for entry in self.protocol:
            only = entry.get("only")
            asked = [run for run in runs if only is None or run.setting("model") in only]
            ours = list(dict.fromkeys(_ours(run, entry["key"]) for run in asked if _has(run, entry["key"])))
            stated = None if "is" not in entry else _shown(entry["is"])
            if not ours or ours == [stated]:
                continue
            whose = f"{', '.join(TITLES.get(m, m) for m in only)}, " if only else ""
            found.append(f"{whose}{entry['name']}: ours {' and '.join(ours)}; published {entry.get('says', stated)}")
        return found

    def footnotes(self, rows: Iterable[Any]) -> list[str]:
        """A line for each thing to know of the methods that a table shows, and of the source."""
        shown = [row for row in rows if isinstance(row, str)]
        found = [f"{TITLES.get(row, row)}: {self.methods[row]}" for row in shown if row in self.methods]
        found += [f"{TITLES.get(row, row)}: {self.unpublished[row]}" for row in shown if row in self.unpublished]
        return [*found, *self.notes]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else clean(canonical(value), 60)


def _place(run: Run, key: str) -> tuple[dict[str, Any], str]:
    if key.startswith("protocol."):
        return run.section("protocol"), key.removeprefix("protocol.")
    return run.settings, key


def _has(run: Run, key: str) -> bool:
    found, name = _place(run, key)
    return name in found


def _ours(run: Run, key: str) -> str:
    found, name = _place(run, key)
    return "none" if found[name] is None else clean(_shown(found[name]), 60)


@cache
def _all() -> dict[str, Any]:
    found = read_yaml(Path(__file__).parent / "published.yaml")
    assert isinstance(found, dict)
    return found


def names() -> list[str]:
    """Of the tables that there are."""
    return list(_all())


def load(name: str) -> Published:
    """A table by its name. Raises InputError where there is none."""
    if name not in _all():
        known = names()
        raise InputError(
            f"there are no published numbers {clean(name, 60)}.{did_you_mean(name, known)} Choices: {', '.join(known)}"
        )
    entry = dict(_all()[name])
    values: dict[tuple[str, str], float] = {}
    for row, numbers in entry["values"].items():
        if isinstance(numbers, list):
            pairs = zip(entry["steps"], numbers, strict=True)
            values |= {(canonical(row), canonical(step)): float(number) for step, number in pairs}
        elif numbers is not None:
            values[canonical(row), canonical(None)] = float(numbers)
    replaced = {e["key"]: e for e in entry.get("replace", ())}
    return Published(
        name=name,
        **{k: entry[k] for k in ("title", "source", "data", "rows", "columns", "metric", "methods", "unpublished")},
        values=values,
        order=tuple(canonical(row) for row in entry["values"]),
        protocol=tuple(replaced.get(e["key"], e) for e in entry["protocol"]),
        notes=tuple(entry["notes"]),
    )
