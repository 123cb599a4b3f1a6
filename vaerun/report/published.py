"""Published numbers and the protocol they were measured with, from published.yaml in this folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vaerun.errors import InputError
from vaerun.report.cells import TITLES
from vaerun.report.protocol import canonical
from vaerun.report.runs import RunSummary
from vaerun.report.text import clean
from vaerun.storage.yaml_files import read_yaml
from vaerun.text import did_you_mean


@dataclass(frozen=True)
class Published:
    """A published table.

    Attributes:
        name: its key in published.yaml.
        title, source: in words.
        data, rows, columns, metric: our table must agree in all four.
        values: (row, column) as canonical settings -> number.
        order: the rows in the source's order.
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
        """Why it does not apply to a table of these rows, columns, metric and data sets; '' if it does."""
        for what, theirs, ours in (
            ("rows are", self.rows, ",".join(rows)),
            ("columns are", self.columns, ",".join(columns) or "none"),
            ("metric is", self.metric, metric),
            ("data set is", self.data, ", ".join(sorted({clean(d, 60) for d in data})) or self.data),
        ):
            if theirs != ours:
                return f"its {what} {theirs}, here {ours}"
        return ""

    def differences(self, runs: Sequence[RunSummary]) -> list[str]:
        """A footnote for each known difference between our protocol and the source's."""
        notes = []
        for entry in self.protocol:
            only = entry.get("only")
            affected = [run for run in runs if only is None or run.setting("model") in only]
            ours = list(dict.fromkeys(_our_value(run, entry["key"]) for run in affected if _has(run, entry["key"])))
            stated = None if "is" not in entry else _shown(entry["is"])
            if not ours or ours == [stated]:
                continue
            methods = f"{', '.join(TITLES.get(m, m) for m in only)}, " if only else ""
            notes.append(f"{methods}{entry['name']}: ours {' and '.join(ours)}; published {entry.get('says', stated)}")
        return notes

    def footnotes(self, rows: Iterable[Any]) -> list[str]:
        """Footnotes on the methods that a table shows, and on the source."""
        shown = [row for row in rows if isinstance(row, str)]
        notes = [f"{TITLES.get(row, row)}: {self.methods[row]}" for row in shown if row in self.methods]
        notes += [f"{TITLES.get(row, row)}: {self.unpublished[row]}" for row in shown if row in self.unpublished]
        return [*notes, *self.notes]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else clean(canonical(value), 60)


def _section_and_key(run: RunSummary, key: str) -> tuple[dict[str, Any], str]:
    if key.startswith("protocol."):
        return run.section("protocol"), key.removeprefix("protocol.")
    return run.settings, key


def _has(run: RunSummary, key: str) -> bool:
    section, name = _section_and_key(run, key)
    return name in section


def _our_value(run: RunSummary, key: str) -> str:
    section, name = _section_and_key(run, key)
    return "none" if section[name] is None else clean(_shown(section[name]), 60)


@cache
def _all() -> dict[str, Any]:
    tables = read_yaml(Path(__file__).parent / "published.yaml")
    assert isinstance(tables, dict)
    return tables


def published_names() -> list[str]:
    """Names of the published tables."""
    return list(_all())


def load_published(name: str) -> Published:
    """The published table of this name. Raises InputError if there is none."""
    if name not in _all():
        known = published_names()
        raise InputError(
            f"unknown published numbers {clean(name, 60)}.{did_you_mean(name, known)} Choices: {', '.join(known)}"
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
