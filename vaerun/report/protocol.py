"""Which runs are comparable: numbers measured differently are not put side by side unless explicitly allowed.

Two kinds of difference are rejected. Between any two runs of a table: in the protocol, which defines what a number
measures (density, data, images, K). Between the runs of one cell, which a mean and a standard deviation over seeds
summarise: in any setting but the seed. Other settings may differ between cells, which a footnote says.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vaerun.errors import InputError
from vaerun.incidental import DATA_PATHS, is_incidental
from vaerun.report.runs import OK, RunSummary
from vaerun.report.text import abbreviate, clean
from vaerun.text import did_you_mean

DATA = ("data", "data_sha256", "images.train", "images.validation", "images.test", "split", "validation_split")
LIKELIHOOD_KEYS = ("units", "likelihood")  # irrelevant to metrics of generated images
GENERATED = ("frechet_distance", "precision", "recall", "density", "coverage", "diversity")
WEIGHTED = ("log_likelihood", "bits_per_dimension", "effective_sample_size", "pareto_k", "gap_")
ADAPTIVE = ("amis", "gap_posterior")  # metrics of adaptive importance sampling: amis, amis_ess, ...
ADAPTIVE_ENTRIES, ADAPTIVE_SETTINGS = "amis.", "evaluation.amis."  # in the protocol and in the configuration
PROTOCOL = (
    *DATA, *LIKELIHOOD_KEYS, "binarize", "dequantize", "logit", "conditional", "evaluated_split", "evaluated_images",
)  # fmt: skip
INCOMPARABLE = (
    *LIKELIHOOD_KEYS, "data", "data_sha256", "binarize", "dequantize", "logit", "conditional", "evaluated_split",
)  # fmt: skip
READING = tuple(f"data.{key}" for key in ("image_size", "channels", "image_column", "label_column"))
"""How a user's data are read."""
DATA_SET = ("data", "data.name", *DATA_PATHS)  # settings that name the data set
COUNTED = ("amis.images", "amis.simulated", "annealing.images", "gap.images", "generated.samples")  # of its images
DETERMINING_SETTINGS = {
    **dict.fromkeys(DATA, (*DATA_SET, *READING)),
    "images.train": (*DATA_SET, "data.train_images", "data.validation"),
    "images.validation": (*DATA_SET, "data.validation"),
    **dict.fromkeys(("evaluated_images", *COUNTED), (*DATA_SET, "evaluation.images")),
    "classifier": DATA_SET,
    "evaluated_split": ("evaluation.split",),
    "importance_samples": ("evaluation.samples",),
    "binarize": ("data.binarize",),
    "dequantize": ("data.dequantize",),
    "logit": ("data.logit",),
    "likelihood": ("model.likelihood",),
    "conditional": ("model.conditional",),
}
DETERMINING_SETTINGS["validation_split"] = DETERMINING_SETTINGS["images.validation"]

DISTINGUISHING_SETTINGS = dict.fromkeys(LIKELIHOOD_KEYS, ("model.family", "model"))
"""Further settings that distinguish runs with different entries in the protocol."""

IMPLIED_BY_DATA = (
    "units",
    *(key for key, settings in DETERMINING_SETTINGS.items() if "data" in settings and key != "data"),
)
"""Entries of the protocol that are redundant if the data sets differ."""

MAXIMUM_DIFFERENCES = 3  # spelled out in an error line
MAXIMUM_KEYS = 10  # maximum number of keys suggested for --mix; above it, --mix all

FOOTNOTED_MODEL_SETTINGS = ("model.latent_dim", "model.encoder.hidden", "model.decoder.hidden")
"""Settings of the model that get a footnote if cells differ in them."""
UNRECORDED = "not recorded"


def determining_settings(entry: str) -> tuple[str, ...]:
    """Settings that determine an entry of the protocol, which may differ along them, or by permission (--mix)."""
    return (*DETERMINING_SETTINGS.get(entry, ()), f"evaluation.{entry}")


def is_irrelevant(key: str, value: Any) -> bool:
    """Whether this setting cannot change a result, so that runs that differ in it are comparable."""
    return is_incidental(key, value) or key in DATA_PATHS


def canonical(value: Any) -> str:
    """A string that is equal for equal values: 140 and 140.0 give the same."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:  # 1e+30 stays as it is
        value = int(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(canonical(v) for v in value)}]"
    return json.dumps(value, sort_keys=True, default=str)


def is_adaptive(metric: str) -> bool:
    """Whether the metric is measured by adaptive importance sampling."""
    return metric.rpartition("/")[2].startswith(ADAPTIVE)


def protocol_of(run: RunSummary, metric: str) -> dict[str, Any]:
    """Entries that must agree between two runs for their values of the metric to compare."""
    recorded, name = run.section("protocol"), metric.rpartition("/")[2]
    generated = any(part in name for part in GENERATED) and "log_likelihood" not in name
    adaptive = is_adaptive(metric)
    keys = [k for k in PROTOCOL if not (generated and k in LIKELIHOOD_KEYS)]
    if adaptive:
        keys.remove("evaluated_images")  # amis.images counts: the first of these
    if name == "amis_minus_is" or (not (generated or adaptive) and any(part in name for part in WEIGHTED)):
        keys.append("importance_samples")
    annealed = "ais" in name or "bdmc" in name
    relevant = {
        "generated.": generated,
        "annealing.": annealed,
        ADAPTIVE_ENTRIES: adaptive,
        "gap.": name.startswith("gap_") and not adaptive,
        "observation.": annealed or adaptive,
    }
    prefixes = tuple(prefix for prefix, is_relevant in relevant.items() if is_relevant)
    simulated = "" if name in ("amis_lower", "amis_upper", "amis_gap") else "amis.simulated"
    keys += [key for key in recorded if key.startswith(prefixes) and key != simulated]
    protocol = {key: recorded.get(key, UNRECORDED) for key in keys}
    protocol["data"] = run.result.get("data", UNRECORDED)
    protocol["evaluated_split"] = recorded.get("evaluated_split", "test")  # versions without the choice used test
    if generated:
        protocol["classifier"] = run.section("details").get("classifier.name")
    return protocol


class AllowedDifferences:
    """What may differ between runs: entries of the protocol, dotted settings, or all.

    Arguments:
        keys: each one or several, separated by commas.
        runs: the runs to compare.
        metrics: the metrics to compare.

    Raises InputError for a key that no run has.
    """

    def __init__(self, keys: Sequence[str], runs: Sequence[RunSummary], metrics: Sequence[str]) -> None:
        self.keys = {key.strip() for text in keys for key in text.split(",") if key.strip()}
        self.allow_all = "all" in self.keys
        known = {"fingerprint", "images", *(key for run in runs for key in run.settings)}
        known |= {key for run in runs for metric in metrics for key in protocol_of(run, metric)}
        for key in sorted(self.keys - {"all"} - known):
            raise InputError(f"--mix {clean(key)}: no run has this key.{did_you_mean(key, sorted(known))}")

    def allows(self, key: str) -> bool:
        """Whether runs may differ in this entry of the protocol or this setting."""
        if self.allow_all or key in self.keys or (key.startswith("images.") and "images" in self.keys):
            return True
        # An entry of the protocol is also allowed by a setting that determines it.
        if any(setting in self.keys for setting in determining_settings(key)):
            return True
        if key.startswith("data.") and "data" in self.keys:
            return True
        return key not in ("data", "data.name") and any(key in determining_settings(part) for part in self.keys)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else canonical(value)
    return clean(text[:12] if len(text) == 64 else text, 60)


def _difference(key: str, a: tuple[Any, RunSummary], b: tuple[Any, RunSummary]) -> str:
    return f"{clean(key, 100)} is {_shown(a[0])} in {a[1].name} and {_shown(b[0])} in {b[1].name}"


def _first_of(differences: Sequence[str]) -> str:
    more = f"; and {len(differences) - MAXIMUM_DIFFERENCES} more" if len(differences) > MAXIMUM_DIFFERENCES else ""
    return "; ".join(differences[:MAXIMUM_DIFFERENCES]) + more


def _mix_argument(keys: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(keys))
    return "all" if len(distinct) > MAXIMUM_KEYS else clean(",".join(distinct), 400)


def _distinguishing_setting(key: str, a: RunSummary, b: RunSummary) -> str | None:
    """The first setting behind an entry of the protocol in which two runs differ."""
    for setting in (*determining_settings(key), *DISTINGUISHING_SETTINGS.get(key, ())):
        if canonical(a.setting(setting)) != canonical(b.setting(setting)):
            return setting
    return None


def _with_metric(runs: Sequence[RunSummary], metric: str) -> list[RunSummary]:
    """The finished runs that have the metric, and unfinished ones of their families that have recorded a protocol."""
    finished = [run for run in runs if run.state == OK and run.number("metrics", metric) is not None]
    families = {canonical(run.section("protocol").get("family")) for run in finished}
    return finished + [
        run
        for run in runs
        if run.state != OK and (protocol := run.section("protocol")) and canonical(protocol.get("family")) in families
    ]


def check_protocol(
    runs: Sequence[RunSummary], metric: str, axes: Sequence[str], allowed: AllowedDifferences
) -> list[str]:
    """Footnotes on the allowed differences of protocol between the runs that have the metric, or may yet have it.

    Arguments:
        runs: the table's runs.
        metric: the table's metric.
        axes: settings on the table's axes.
        allowed: what may differ.

    Raises InputError for any other difference, naming two runs as an example.
    """
    rejected: dict[str, tuple[str, RunSummary, RunSummary]] = {}
    notes = []
    recorded = [(run, protocol_of(run, metric)) for run in _with_metric(runs, metric)]
    for key in dict.fromkeys(key for _, protocol in recorded for key in protocol):
        along = [axis for axis in axes if axis in determining_settings(key)]
        first: dict[tuple[str, ...], tuple[Any, RunSummary]] = {}
        if along and key in INCOMPARABLE and len({canonical(p.get(key, UNRECORDED)) for _, p in recorded}) > 1:
            name = "data" if key == "data_sha256" else key
            notes.append(f"{name} differs along {', '.join(along)}: numbers are not comparable across it")
        for run, protocol in recorded:
            if key.startswith(ADAPTIVE_ENTRIES) and key not in protocol:
                continue  # of an older version, or without evaluation.amis: has no such number
            current = protocol.get(key, UNRECORDED), run
            previous = first.setdefault(tuple(canonical(run.setting(axis)) for axis in along), current)
            if canonical(previous[0]) == canonical(current[0]):
                continue
            if allowed.allows(key):
                notes.append(f"mixed, as requested: {_difference(key, previous, current)}")
            else:
                rejected[key] = _difference(key, previous, current), previous[1], run
            break
    if rejected:
        shown = [key for key in rejected if "data" not in rejected or key not in IMPLIED_BY_DATA]
        setting = _distinguishing_setting(shown[0], *rejected[shown[0]][1:])
        remedy = f"choose by --where {setting}=VALUE" if setting else "choose other runs by --where KEY=VALUE"
        if setting and all(setting in determining_settings(key) for key in rejected):
            remedy += f", compare along it by --rows {','.join([*axes[:1], setting])}"
        # --mix data allows the others
        mix = [key for key in rejected if key in shown or "data" not in DETERMINING_SETTINGS.get(key, ())]
        raise InputError(
            f"these runs are not comparable: {_first_of([rejected[key][0] for key in shown])}: {remedy}, "
            f"or allow it by --mix {_mix_argument(mix)}"
        )
    return list(dict.fromkeys(notes))


def _settings(run: RunSummary, axes: Sequence[str]) -> dict[str, Any]:
    excluded = {*axes, *(f"{axis}.name" for axis in axes), "seed"}
    return {
        k: v
        for k, v in run.settings.items()
        # Those of evaluation.amis change no other metric, and are compared as part of the protocol of its own.
        # evaluation.estimates draws a picture, and has no metric.
        if k not in excluded
        and not is_irrelevant(k, v)
        and not k.startswith((ADAPTIVE_SETTINGS, "evaluation.estimate"))
    }


def _is_equal(key: str, a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two configurations agree in a key; a missing key is from a version in which the option was off."""
    if key not in a or key not in b:
        return (a.get(key) or b.get(key)) in (None, False, "", 0)
    return canonical(a[key]) == canonical(b[key])


def check_cell(
    name: str, runs: Sequence[RunSummary], axes: Sequence[str], rows: str, allowed: AllowedDifferences
) -> list[str]:
    """Footnotes on the allowed differences between the runs of a cell, which otherwise differ in their seeds only.

    Raises InputError for any other difference.
    """
    if len(runs) < 2:
        return []
    rejected, notes = [], []
    first = _settings(runs[0], axes)
    for run in runs[1:]:
        other = _settings(run, axes)
        for key in dict.fromkeys([*first, *other]):
            if _is_equal(key, first, other):
                continue
            text = _difference(key, (first.get(key), runs[0]), (other.get(key), run))
            if allowed.allows(key):
                notes.append(f"mixed in {name}, as requested: {text}")
            else:
                rejected.append((key, text, first.get(key)))
        if rejected:
            key, _, value = rejected[0]
            raise InputError(
                f"the runs of one cell ({name}) differ: {_first_of([text for _, text, _ in rejected])}: "
                f"choose by --where {key}={_shown(value)}, or --rows {rows},{key} or --columns {key}, "
                f"or --mix {_mix_argument(key for key, _, _ in rejected)}"
            )
    return notes


def cell_differences(cells: Sequence[tuple[str, Sequence[RunSummary]]], axes: Sequence[str]) -> list[str]:
    """A footnote for each setting in which cells differ, other than the axes and the details of a method."""
    groups = {axis.partition(".")[0] for axis in axes if "." not in axis} | {"model", "estimator"}
    cells_by_value: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, runs in cells:
        for run in runs[:1]:
            for key, value in _settings(run, axes).items():
                if key.partition(".")[0] not in groups or key in FOOTNOTED_MODEL_SETTINGS:
                    cells_by_value[key][canonical(value)].append(name)
    notes = []
    for key, values in cells_by_value.items():
        if len(values) > 1:
            parts = [f"{clean(v, 60)} ({abbreviate(names)})" for v, names in values.items()]
            notes.append(f"{key} differs between cells: {'; '.join(parts)}")
    return notes


def common_value(runs: Sequence[RunSummary], value: Callable[[RunSummary], Any]) -> str:
    """The value that all runs share, or `mixed:` and the first few."""
    values = list(dict.fromkeys(_shown(value(run)) for run in runs))
    return values[0] if len(values) == 1 else f"mixed: {', '.join(values[:4])}"
