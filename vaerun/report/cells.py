"""Cells of a table: the position of a run, and the summary over the seeds in a cell.

A cell shows the mean over seeds of a run's metric (itself a mean over images), the sample standard deviation over seeds
(n - 1) and the standard error of the mean, sd / sqrt(n). Unfinished runs do not enter the mean but are counted.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vaerun.errors import InputError
from vaerun.incidental import DATA_PATHS
from vaerun.report.protocol import ADAPTIVE_SETTINGS, AllowedDifferences, canonical, is_irrelevant
from vaerun.report.runs import FAILED, INTERRUPTED, MISSING, OK, RUNNING, STOPPED, UNREADABLE, RunSummary
from vaerun.report.text import clean, is_number
from vaerun.text import format_fixed

NO_VALUE = "without the metric"
STATES = (FAILED, INTERRUPTED, STOPPED, RUNNING, NO_VALUE, UNREADABLE, MISSING)
"""All states other than OK, in the order in which they are listed."""
_PREFERENCE = (OK, RUNNING, STOPPED, INTERRUPTED, FAILED, UNREADABLE, MISSING)  # preferred state among runs of one seed

TITLES = {
    "vae": "VAE", "cvae": "CVAE", "sa_vae": "SA-VAE", "vae_hf": "VAE+HF", "vae_iaf": "VAE+IAF", "vlae": "VLAE",
    "vae_full": "VAE, full covariance", "ppca": "pPCA", "draw": "DRAW", "ae": "autoencoder", "gan": "GAN",
    "cgan": "CGAN", "dcgan": "DCGAN", "infogan": "InfoGAN",
}  # fmt: skip
SYMBOLS = {"model.inference.steps": "T"}
NULL = "null"  # canonical(None): the run has no value of the key
Position = tuple[str, ...]
"""A run's position along an axis: the canonical values of the axis's keys."""


@dataclass(frozen=True)
class Axis:
    """Settings that distinguish the rows or the columns; no keys: a single row or column."""

    keys: tuple[str, ...]

    def position(self, run: RunSummary) -> Position:
        """The run's position along this axis."""
        return tuple(canonical(run.setting(key)) for key in self.keys)

    @property
    def title(self) -> str:
        return ", ".join(SYMBOLS.get(key, key) for key in self.keys)

    def labels(self, positions: Sequence[Position], with_key: bool = False) -> dict[Position, str]:
        """A unique text for each position, `-` for no value.

        Arguments:
            positions: all positions of the table.
            with_key: include the first setting's name, as in T=4.
        """
        paths = [text for p in positions for key, text in zip(self.keys, p, strict=True) if key in DATA_PATHS]
        short = shorten_paths([path for path in map(json.loads, paths) if isinstance(path, str)])
        labels = {position: self._label(position, with_key, short) for position in positions}
        count = Counter(labels.values())
        return {p: text if count[text] == 1 else f"{text} #{i + 1}" for i, (p, text) in enumerate(labels.items())}

    def _label(self, position: Position, with_key: bool, short: Mapping[str, str]) -> str:
        parts = []
        for index, (key, text) in enumerate(zip(self.keys, position, strict=True)):
            value = json.loads(text)
            if key in ("model", "model.name") and isinstance(value, str):
                shown = TITLES.get(value, clean(value, 60))
            else:
                shown = "-" if value is None else clean(short.get(value, value) if isinstance(value, str) else text, 60)
            named = value is not None and (with_key or index > 0)
            parts.append(f"{SYMBOLS.get(key, key.rpartition('.')[2])}={shown}" if named else shown)
        return ", ".join(parts) or "all"


def shorten_paths(paths: Sequence[str]) -> dict[str, str]:
    """The shortest ends of the paths, in whole names, that tell them apart."""
    names = {path: Path(path).parts for path in paths}
    for length in range(1, max(map(len, names.values()), default=0)):
        short = {path: "/".join(parts[-length:]) for path, parts in names.items()}
        if len(set(short.values())) == len(names):
            return short
    return {path: path for path in names}


def has_no_value(position: Position) -> bool:
    """Whether runs at this position have none of the axis's settings."""
    return all(text == NULL for text in position)


def sort_positions(positions: Iterable[Position]) -> list[Position]:
    """The distinct positions: first those without a value, then numbers, then strings."""

    def rank(text: str) -> tuple[int, float, str]:
        value = json.loads(text)
        if is_number(value):
            return 1, value, text
        return (0 if value is None else 2), 0.0, text

    return sorted(set(positions), key=lambda position: [rank(text) for text in position])


@dataclass
class Cell:
    """The runs of one row and column, each seed once.

    Attributes:
        name: row and column in words.
        row, column: labels of the axes.
        runs: all runs, in any state.
        metric: shown in the cell.
        published: number to compare with, or None.
        values: seed -> metric of each finished run.
        states: number of runs in each other state.
        progress: state -> fractions of training done by its runs, where known.
        finished: the runs behind `values`.
    """

    name: str
    row: str
    column: str
    runs: list[RunSummary]
    metric: str
    published: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    states: Counter[str] = field(default_factory=Counter)
    progress: dict[str, list[float]] = field(default_factory=dict)
    finished: list[RunSummary] = field(default_factory=list)

    def __post_init__(self) -> None:
        for index, run in enumerate(self.runs):
            value = run.number("metrics", self.metric)
            if run.state == OK and value is not None:
                seed = canonical(run.seed)
                self.values[seed if seed not in self.values else f"{seed} ({index})"] = value
                self.finished.append(run)
                continue
            state = NO_VALUE if run.state == OK else run.state
            self.states[state] += 1
            if run.progress is not None:
                self.progress.setdefault(state, []).append(run.progress)

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two."""
        return statistics.stdev(self.values.values()) if self.n > 1 else None

    @property
    def se(self) -> float | None:
        return None if self.sd is None else self.sd / math.sqrt(self.n)

    @property
    def difference(self) -> float | None:
        return None if self.mean is None or self.published is None else self.mean - self.published

    def mean_of(self, section: str, key: str) -> float | None:
        """Mean over the finished runs of a number in their results; None if a run lacks it."""
        values = [run.number(section, key) for run in self.finished]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known and len(known) == len(values) else None

    def summarise_unfinished(self) -> str:
        """The unfinished runs, `1 failed, 2 running 43%, 20%`; without the count if the cell has a single run."""
        parts = []
        for state in STATES:
            if count := self.states[state]:
                percentages = ", ".join(f"{math.floor(100 * part)}%" for part in self.progress.get(state, ()))
                single = len(self.runs) == 1
                parts.append(" ".join(filter(None, ["" if single else str(count), state, percentages])))
        return ", ".join(parts)

    def format(self, decimals: int) -> str:
        """The cell's text: mean ± standard deviation over seeds, and unfinished runs."""
        if not self.runs:
            return MISSING if self.published is not None else ""
        if not self.n:
            return self.summarise_unfinished()
        number = format_fixed(self.mean or 0.0, decimals) + (
            "" if self.sd is None else f" ± {format_fixed(self.sd, decimals)}"
        )
        if self.n == len(self.runs):
            return f"{number} (n={self.n})"
        return f"{self.n} of {len(self.runs)}: {number}{' (n=1)' if self.n == 1 else ''}; {self.summarise_unfinished()}"


def deduplicate(
    name: str, runs: Sequence[RunSummary], allowed: AllowedDifferences
) -> tuple[list[RunSummary], list[str]]:
    """One run per seed, the most advanced one, and a footnote for each finished duplicate.

    Settings of evaluation.amis change no other metric, and a table of its own metrics has no runs that differ in them.

    Raises InputError for two finished runs of one seed with different fingerprints (e.g. of different versions of the
    numerics).
    """
    by_seed: dict[tuple[str, ...], RunSummary] = {}
    by_fingerprint: dict[str, RunSummary] = {}
    notes = []
    for run in sorted(runs, key=lambda run: (_PREFERENCE.index(run.state), -len(run.section("metrics")))):
        mixed = [
            f"{k}={canonical(v)}"
            for k, v in sorted(run.settings.items())
            if k != "seed" and not is_irrelevant(k, v) and allowed.allows(k)
        ]
        key = (canonical(run.seed), *mixed)
        if run.state == OK:
            fingerprint = str(run.result.get("fingerprint") or run.name)
            if fingerprint in by_fingerprint:
                notes.append(
                    f"{name}: {by_fingerprint[fingerprint].name} and {run.name} are the same run: counted once"
                )
                continue
            by_fingerprint[fingerprint] = run
            if key in by_seed and not allowed.allows("fingerprint"):
                first = by_seed[key]
                if other := _different_settings(first, run):
                    notes.append(
                        f"{name}: {first.name} and {run.name} differ in {', '.join(other)} only, which the metrics "
                        "shown do not depend on: counted once"
                    )
                    continue
                raise InputError(
                    f"{first.name} and {run.name} ({name}) have the same settings and seed but different fingerprints: "
                    "other data, or a version with other numerics: move one away, or --mix fingerprint"
                )
            key = (*key, run.name) if key in by_seed else key
        by_seed.setdefault(key, run)
    order = {run.folder: index for index, run in enumerate(runs)}
    return sorted(by_seed.values(), key=lambda run: order[run.folder]), notes


def _different_settings(a: RunSummary, b: RunSummary) -> list[str]:
    """The settings of evaluation.amis in which two runs differ."""
    keys = [key for key in dict.fromkeys([*a.settings, *b.settings]) if key.startswith(ADAPTIVE_SETTINGS)]
    return [clean(key, 100) for key in keys if canonical(a.settings.get(key)) != canonical(b.settings.get(key))]
