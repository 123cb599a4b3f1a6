"""Which runs compare: refuses to put numbers beside each other that were not measured alike, unless told to.

Two kinds of difference are refused. Between any two runs of a table: of the protocol, which says what a number is of
(density, data, images, K). Between the runs of one cell, which a mean and a standard deviation over seeds summarise: of
any setting other than the seed. Other settings may differ between cells; that is told in a note.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vaerun.errors import InputError
from vaerun.incidental import DATA_PATHS, is_incidental
from vaerun.report.runs import OK, Run
from vaerun.report.text import clean
from vaerun.text import did_you_mean

DATA = ("data", "data_sha256", "images.train", "images.validation", "images.test", "split", "validation_split")
DENSITY = ("units", "likelihood")  # of no matter where the metric is of generated images
GENERATED = ("frechet_distance", "precision", "recall", "density", "coverage", "diversity")
WEIGHTED = ("log_likelihood", "bits_per_dimension", "effective_sample_size", "pareto_k", "gap_")
PROTOCOL = (
    *DATA, *DENSITY, "binarize", "dequantize", "logit", "conditional", "evaluated_split", "evaluated_images",
)  # fmt: skip
INCOMPARABLE = (*DENSITY, "data", "binarize", "dequantize", "logit", "conditional", "evaluated_split")
SETTING = {
    **dict.fromkeys(DATA, ("data", "data.name", "data.path", "data.source.path", "data.image_size", "data.channels")),
    "images.train": ("data", "data.name", "data.path", "data.source.path", "data.train_images", "data.validation"),
    "images.validation": ("data", "data.name", "data.path", "data.source.path", "data.validation"),
    "evaluated_images": ("evaluation.images", "data", "data.name"),
    "evaluated_split": ("evaluation.split",),
    "importance_samples": ("evaluation.samples",),
    "binarize": ("data.binarize",),
    "dequantize": ("data.dequantize",),
    "logit": ("data.logit",),
    "likelihood": ("model.likelihood",),
    "conditional": ("model.conditional",),
}
SETTING["validation_split"] = SETTING["images.validation"]
"""Settings that a part of the protocol follows from: where such a one is an axis of the table, its parts may differ
along it; where it is mixed, they are too."""

RESOLVING = dict.fromkeys(DENSITY, ("model.family", "model"))
"""Further settings that tell runs apart which differ in a part of the protocol."""

FOLLOWING = ("units", *(key for key, settings in SETTING.items() if "data" in settings and key != "data"))
"""Parts of the protocol that say nothing new where the data sets are different ones already."""

MOST = 3  # differences told in full
MOST_NAMES = 10  # keys to mix that are listed: of more, all

SHARED = ("model.latent_dim", "model.encoder.hidden", "model.decoder.hidden")  # noted where cells differ in them
UNRECORDED = "not recorded"


def is_irrelevant(key: str, value: Any) -> bool:
    """Whether runs that differ in this setting still compare: it cannot change a result."""
    return is_incidental(key, value) or key in DATA_PATHS


def canonical(value: Any) -> str:
    """Equal for equal values: 140 and 140.0 are one."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:  # 1e+30 stays as it is
        value = int(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(canonical(v) for v in value)}]"
    return json.dumps(value, sort_keys=True, default=str)


def protocol_of(run: Run, metric: str) -> dict[str, Any]:
    """What must agree between two runs for their values of the metric to compare, by key."""
    kept, name = run.section("protocol"), metric.rpartition("/")[2]
    generated = any(part in name for part in GENERATED) and "log_likelihood" not in name
    keys = [k for k in PROTOCOL if not (generated and k in DENSITY)]
    if not generated and any(part in name for part in WEIGHTED):
        keys.append("importance_samples")
    own = {"generated.": generated, "annealing.": "ais" in name or "bdmc" in name, "gap.": name.startswith("gap_")}
    own["observation."] = own["annealing."]
    keys += [k for k in kept if any(used and k.startswith(prefix) for prefix, used in own.items())]
    found = {key: kept.get(key, UNRECORDED) for key in keys}
    found["data"] = run.result.get("data", UNRECORDED)
    found["evaluated_split"] = kept.get("evaluated_split", "test")  # of before it could be chosen
    if generated:
        found["classifier"] = run.section("details").get("classifier.name")
    return found


class AllowedDifferences:
    """What the user lets differ: keys of the protocol, dotted settings, or all.

    Raises InputError for a key that no run has.
    """

    def __init__(self, words: Sequence[str], runs: Sequence[Run], metric: str) -> None:
        self.keys = {key.strip() for word in words for key in word.split(",") if key.strip()}
        self.all = "all" in self.keys
        known = {key for run in runs for key in (*run.settings, *protocol_of(run, metric))} | {"fingerprint", "images"}
        for key in sorted(self.keys - {"all"} - known):
            raise InputError(f"--mix {clean(key)}: no run has such a key.{did_you_mean(key, sorted(known))}")

    def allows(self, key: str) -> bool:
        """Whether runs may differ in this part of the protocol or this setting."""
        if self.all or key in self.keys or (key.startswith("images.") and "images" in self.keys):
            return True
        if any(setting in self.keys for setting in SETTING.get(key, ())):  # a part of the protocol, by what makes it
            return True
        if key.startswith("data.") and "data" in self.keys:
            return True
        return key not in ("data", "data.name") and any(key in SETTING.get(part, ()) for part in self.keys)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else canonical(value)
    return clean(text[:12] if len(text) == 64 else text, 60)


def _difference(key: str, one: tuple[Any, Run], other: tuple[Any, Run]) -> str:
    return f"{clean(key, 100)} is {_shown(one[0])} in {one[1].name} and {_shown(other[0])} in {other[1].name}"


def _some_of(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - MOST} more" if len(texts) > MOST else ""
    return "; ".join(texts[:MOST]) + more


def _names(keys: Iterable[str]) -> str:
    found = list(dict.fromkeys(keys))
    return "all" if len(found) > MOST_NAMES else clean(",".join(found), 400)


def _telling_apart(key: str, one: Run, other: Run) -> str | None:
    """The first of the settings behind a part of the protocol that has another value in the other run."""
    for setting in (*SETTING.get(key, ()), *RESOLVING.get(key, ()), f"evaluation.{key}"):
        if canonical(one.setting(setting)) != canonical(other.setting(setting)):
            return setting
    return None


def check_protocol(runs: Sequence[Run], metric: str, axes: Sequence[str], mix: AllowedDifferences) -> list[str]:
    """What the user has let differ, a line each; runs without a record have no protocol yet.

    Arguments:
        axes: the settings that the table's rows and columns are.

    Raises InputError for what differs otherwise, with two folders as examples.
    """
    refused: dict[str, tuple[str, Run, Run]] = {}
    notes = []
    recorded = [(run, protocol_of(run, metric)) for run in runs if run.state == OK or run.section("protocol")]
    for key in dict.fromkeys(key for _, protocol in recorded for key in protocol):
        along = [axis for axis in axes if axis in SETTING.get(key, ())]
        first: dict[tuple[str, ...], tuple[Any, Run]] = {}
        if along and key in INCOMPARABLE and len({canonical(p.get(key, UNRECORDED)) for _, p in recorded}) > 1:
            notes.append(f"{key} differs along {', '.join(along)}: across it the numbers do not compare")
        for run, protocol in recorded:
            here = protocol.get(key, UNRECORDED), run
            before = first.setdefault(tuple(canonical(run.setting(axis)) for axis in along), here)
            if canonical(before[0]) == canonical(here[0]):
                continue
            if mix.allows(key):
                notes.append(f"mixed, as asked for: {_difference(key, before, here)}")
            else:
                refused[key] = _difference(key, before, here), before[1], run
            break
    if refused:
        told = [key for key in refused if "data" not in refused or key not in FOLLOWING]
        setting = _telling_apart(told[0], *refused[told[0]][1:])
        way = f"choose by --where {setting}=VALUE" if setting else "choose other runs by --where KEY=VALUE"
        named = [key for key in refused if key in told or "data" not in SETTING.get(key, ())]  # --mix data allows those
        raise InputError(
            f"these runs do not compare: {_some_of([refused[key][0] for key in told])}: {way}, "
            f"or allow it by --mix {_names(named)}"
        )
    return notes


def _settings(run: Run, axes: Sequence[str]) -> dict[str, Any]:
    own = {*axes, *(f"{axis}.name" for axis in axes), "seed"}
    return {k: v for k, v in run.settings.items() if k not in own and not is_irrelevant(k, v)}


def _same(key: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
    """A key that one of them does not have at all is of another version: there it was off."""
    if key not in one or key not in other:
        return (one.get(key) or other.get(key)) in (None, False, "", 0)
    return canonical(one[key]) == canonical(other[key])


def check_cell(name: str, runs: Sequence[Run], axes: Sequence[str], rows: str, mix: AllowedDifferences) -> list[str]:
    """The same for the settings of the runs of one cell, which shall differ by their seeds only."""
    if len(runs) < 2:
        return []
    refused, notes = [], []
    first = _settings(runs[0], axes)
    for run in runs[1:]:
        other = _settings(run, axes)
        for key in dict.fromkeys([*first, *other]):
            if _same(key, first, other):
                continue
            text = _difference(key, (first.get(key), runs[0]), (other.get(key), run))
            if mix.allows(key):
                notes.append(f"mixed in {name}, as asked for: {text}")
            else:
                refused.append((key, text, first.get(key)))
        if refused:
            key, _, value = refused[0]
            raise InputError(
                f"the runs of one cell ({name}) differ: {_some_of([text for _, text, _ in refused])}: "
                f"choose by --where {key}={_shown(value)}, or --rows {rows},{key} or --columns {key}, "
                f"or --mix {_names(key for key, _, _ in refused)}"
            )
    return notes


def cell_differences(cells: Sequence[tuple[str, Sequence[Run]]], axes: Sequence[str]) -> list[str]:
    """A line for each setting in which cells differ and which is neither an axis nor a method's own affair."""
    groups = {axis.partition(".")[0] for axis in axes if "." not in axis} | {"model", "estimator"}
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, runs in cells:
        for run in runs[:1]:
            for key, value in _settings(run, axes).items():
                if key.partition(".")[0] not in groups or key in SHARED:
                    found[key][canonical(value)].append(name)
    notes = []
    for key, values in found.items():
        if len(values) > 1:
            parts = [f"{clean(v, 60)} ({_some(names)})" for v, names in values.items()]
            notes.append(f"{key} differs between cells: {'; '.join(parts)}")
    return notes


def _some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def common_value(runs: Sequence[Run], of: Callable[[Run], Any]) -> str:
    """The value that all runs share, or how many there are."""
    values = list(dict.fromkeys(_shown(of(run)) for run in runs))
    return values[0] if len(values) == 1 else f"mixed: {', '.join(values[:4])}"
