"""Where runs stand in a table, and what a cell of several seeds says.

A cell's number is the mean over seeds of a run's metric (itself a mean over images), with the sample standard deviation
over seeds (n - 1) and the standard error of the mean, sd / sqrt(n). Runs that are not finished give it no number; they
are told of beside it.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vaerun.errors import InputError
from vaerun.report.protocol import AllowedDifferences, canonical, is_irrelevant
from vaerun.report.runs import FAILED, INTERRUPTED, MISSING, OK, RUNNING, STOPPED, UNREADABLE, Run
from vaerun.report.text import clean, is_number
from vaerun.text import fixed

NO_VALUE = "without the metric"
STATES = (FAILED, INTERRUPTED, STOPPED, RUNNING, NO_VALUE, UNREADABLE, MISSING)  # besides OK, as they are told
_BEST = (OK, RUNNING, STOPPED, INTERRUPTED, FAILED, UNREADABLE, MISSING)  # which of two runs of one seed counts

TITLES = {
    "vae": "VAE", "cvae": "CVAE", "sa_vae": "SA-VAE", "vae_hf": "VAE+HF", "vae_iaf": "VAE+IAF", "vlae": "VLAE",
    "vae_full": "VAE, full covariance", "ppca": "pPCA", "draw": "DRAW", "ae": "autoencoder", "gan": "GAN",
    "cgan": "CGAN", "dcgan": "DCGAN", "infogan": "InfoGAN",
}  # fmt: skip
SHORT = {"model.inference.steps": "T"}
NOTHING = "null"  # canonical(None): a run without a value of the key


@dataclass(frozen=True)
class Axis:
    """Settings by which runs are told apart along the rows or the columns; none: all stand together."""

    keys: tuple[str, ...]

    def position(self, run: Run) -> tuple[str, ...]:
        """Where a run stands: its settings, so that equal ones are equal."""
        return tuple(canonical(run.setting(key)) for key in self.keys)

    @property
    def title(self) -> str:
        return ", ".join(SHORT.get(key, key) for key in self.keys)

    def label(self, place: tuple[str, ...], head: bool = False) -> str:
        """The place in words; `-` where there is no value. `head`: with the setting's name, T=4."""
        parts = []
        for number, (key, text) in enumerate(zip(self.keys, place, strict=True)):
            value = json.loads(text)
            if key in ("model", "model.name") and isinstance(value, str):
                shown = TITLES.get(value, clean(value, 60))
            else:
                shown = "-" if value is None else clean(value if isinstance(value, str) else text, 60)
            named = value is not None and (head or number > 0)
            parts.append(f"{SHORT.get(key, key.rpartition('.')[2])}={shown}" if named else shown)
        return ", ".join(parts) or "all"


def has_no_value(place: tuple[str, ...]) -> bool:
    """Whether a run there has no value of any of the axis's settings."""
    return all(text == NOTHING for text in place)


def sort_positions(places: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Each once, first those without a value, then numbers, then words."""

    def rank(text: str) -> tuple[int, float, str]:
        value = json.loads(text)
        if is_number(value):
            return 1, value, text
        return (0 if value is None else 2), 0.0, text

    return sorted(set(places), key=lambda place: [rank(text) for text in place])


@dataclass
class Cell:
    """The runs of one row and column, each seed once.

    Attributes:
        row, column: as the axes label them.
        values: seed -> the metric, of finished runs.
        states: how many runs are in each other state.
        progress: of those that are not finished, by state.
        published: the number to stand beside, or None.
    """

    name: str
    row: str
    column: str
    runs: list[Run]
    metric: str
    published: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    states: Counter[str] = field(default_factory=Counter)
    progress: dict[str, list[float]] = field(default_factory=dict)
    finished: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number, run in enumerate(self.runs):
            value = run.number("metrics", self.metric)
            if run.state == OK and value is not None:
                seed = canonical(run.seed)
                self.values[seed if seed not in self.values else f"{seed} ({number})"] = value
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
        """Over seeds, None for fewer than two."""
        return statistics.stdev(self.values.values()) if self.n > 1 else None

    @property
    def se(self) -> float | None:
        return None if self.sd is None else self.sd / math.sqrt(self.n)

    @property
    def difference(self) -> float | None:
        return None if self.mean is None or self.published is None else self.mean - self.published

    def mean_of(self, part: str, key: str) -> float | None:
        """Mean over the finished runs of a number of their records; None where one lacks it."""
        found = [run.number(part, key) for run in self.finished]
        known = [value for value in found if value is not None]
        return statistics.fmean(known) if known and len(known) == len(found) else None

    def summarise_unfinished(self) -> str:
        """The runs that give no number: `1 failed, 2 running 43%, 20%`; one alone without its count."""
        parts = []
        for state in STATES:
            if count := self.states[state]:
                shares = ", ".join(f"{math.floor(100 * share)}%" for share in self.progress.get(state, ()))
                alone = len(self.runs) == 1
                parts.append(" ".join(filter(None, ["" if alone else str(count), state, shares])))
        return ", ".join(parts)

    def format(self, decimals: int) -> str:
        """What stands in the cell; mean ± standard deviation over seeds."""
        if not self.runs:
            return MISSING if self.published is not None else ""
        if not self.n:
            return self.summarise_unfinished()
        number = fixed(self.mean or 0.0, decimals) + ("" if self.sd is None else f" ± {fixed(self.sd, decimals)}")
        if self.n == len(self.runs):
            return f"{number} (n={self.n})"
        return f"{self.n} of {len(self.runs)}: {number}{' (n=1)' if self.n == 1 else ''}; {self.summarise_unfinished()}"


def deduplicate(name: str, runs: Sequence[Run], mix: AllowedDifferences) -> tuple[list[Run], list[str]]:
    """Each run once: of two with the same seed the one that is furthest; and a line for each two that were finished.

    Raises InputError for two finished runs of one seed that are not the same run (of other numerics, say).
    """
    kept: dict[tuple[str, ...], Run] = {}
    prints: dict[str, Run] = {}
    notes = []
    for run in sorted(runs, key=lambda run: _BEST.index(run.state)):
        mixed = [
            f"{k}={canonical(v)}"
            for k, v in sorted(run.settings.items())
            if k != "seed" and not is_irrelevant(k, v) and mix.allows(k)
        ]
        key = (canonical(run.seed), *mixed)
        if run.state == OK:
            own = str(run.result.get("fingerprint") or run.name)
            if own in prints:
                notes.append(f"{name}: {prints[own].name} and {run.name} are the same run: counted once")
                continue
            prints[own] = run
            if key in kept and not mix.allows("fingerprint"):
                raise InputError(
                    f"{kept[key].name} and {run.name} ({name}) have the same settings and seed and are not the same "
                    "run (fingerprint): of other versions' numerics, or other data; move one away, or --mix fingerprint"
                )
            key = (*key, run.name) if key in kept else key
        kept.setdefault(key, run)
    order = {run.folder: number for number, run in enumerate(runs)}
    return sorted(kept.values(), key=lambda run: order[run.folder]), notes
