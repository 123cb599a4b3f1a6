"""What a table shows: as requested, else as in the runs' configuration (sweep.table), else by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vaerun.errors import InputError
from vaerun.report import captions
from vaerun.report.cells import Axis
from vaerun.report.protocol import canonical, is_adaptive
from vaerun.report.published import Published, load_published
from vaerun.report.runs import OK, RunSummary
from vaerun.report.text import clean
from vaerun.text import did_you_mean

ROWS, COLUMNS = "model", "model.inference.steps"  # default axes


@dataclass(frozen=True)
class TableSpec:
    """What to show; None: as in the runs' configuration (sweep.table).

    Attributes:
        rows, columns: dotted settings, several separated by commas; columns `none`: a single column.
        metric: of result.json, several separated by commas: a table each.
        published: name of published numbers, `none` for none.
        where: conditions KEY=VALUE that select runs; for several values of one key, any of them.
        mix: keys that may differ, although the numbers are then not comparable.
    """

    rows: str | None = None
    columns: str | None = None
    metric: str | None = None
    published: str | None = None
    where: tuple[str, ...] = ()
    mix: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """A TableSpec with nothing left open.

    Attributes:
        rows, columns: the axes.
        metrics: a table each.
        by_default: whether `metrics` are the default ones.
        published: name of published numbers, None for none.
    """

    rows: Axis
    columns: Axis
    metrics: list[str]
    by_default: bool
    published: str | None


def resolve(spec: TableSpec, runs: Sequence[RunSummary], known: Sequence[str]) -> Options:
    """Fill in what `spec` leaves open.

    Arguments:
        runs: the runs of the table.
        known: settings to suggest instead of a misspelled one.

    Raises InputError if the runs' configurations disagree, or no run has what `spec` names.
    """
    rows = _split(_option("rows", spec.rows, ROWS, runs))
    columns = _split(_option("columns", spec.columns, COLUMNS, runs))
    columns = () if columns == ("none",) else columns
    axes = Axis(_tell_data_apart(rows, columns, runs)), Axis(_tell_data_apart(columns, rows, runs))
    for axis, requested in zip(axes, (spec.rows, spec.columns), strict=True):
        for key in axis.keys if requested is not None else ():
            if all(run.setting(key) is None for run in runs):
                raise InputError(f"no run has the setting {clean(key)}.{did_you_mean(key, known)}")
    metrics = _split(_option("metric", spec.metric, None, runs))
    if spec.metric is not None:
        _check_metrics(metrics, runs)
    published = _option("published", spec.published, None, runs)
    return Options(
        *axes,
        list(metrics or _default_metrics(runs)),
        by_default=not metrics,
        published=None if published == "none" else published,
    )


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))


def _tell_data_apart(keys: tuple[str, ...], others: tuple[str, ...], runs: Sequence[RunSummary]) -> tuple[str, ...]:
    """The keys of an axis, with data.path next to `data` if several data sets share a name, such as npz."""
    named = next((key for key in ("data", "data.name") if key in keys), None)
    if named is None or "data.path" in (*keys, *others):
        return keys
    sets = {
        (canonical(run.setting("data")), str(run.section("protocol").get("data_sha256", run.setting("data.path"))))
        for run in runs
    }
    if len(sets) == len({name for name, _ in sets}):
        return keys
    at = keys.index(named) + 1
    return (*keys[:at], "data.path", *keys[at:])


def _option(name: str, requested: str | None, default: str | None, runs: Sequence[RunSummary]) -> str | None:
    """As requested, else as in the runs' configurations if they agree, else the default."""
    if requested is not None:
        return requested
    configured = {canonical(run.table[name]): run for run in reversed(runs) if name in run.table}
    if len(configured) > 1:
        examples = ", ".join(f"{clean(text, 60)} in {run.name}" for text, run in list(configured.items())[:2])
        raise InputError(f"the runs' configurations disagree on sweep.table.{name} ({examples}): choose by --{name}")
    value: Any = next(iter(configured.values())).table[name] if configured else default
    return value if value is None or isinstance(value, str) else str(value)


def _default_metrics(runs: Sequence[RunSummary]) -> list[str]:
    """The families' metrics, and those of adaptive importance sampling if a finished run has them."""
    families = {canonical(run.settings.get("model.family", run.section("protocol").get("family"))) for run in runs}
    recorded = {key for run in runs if run.state == OK for key in run.section("metrics")}
    optional = [captions.ADAPTIVE_METRIC, captions.POSTERIOR_GAP]
    if families == {canonical("adversarial")}:
        first = captions.ADVERSARIAL_METRIC
    else:
        first = captions.LIKELIHOOD_METRIC
        optional += [captions.ADVERSARIAL_METRIC] * (canonical("adversarial") in families)
    return [first, *(metric for metric in optional if metric in recorded)]


def _check_metrics(metrics: Sequence[str], runs: Sequence[RunSummary]) -> None:
    finished = [run for run in runs if run.state == OK]
    available = {key for run in finished for key in run.section("metrics")}
    for metric in metrics:
        if not finished or metric in available:
            continue
        same_name = next((key for key in sorted(available) if _last(key) == _last(metric)), None)
        if same_name is None and is_adaptive(metric):
            raise InputError(
                f"no finished run has the metric {clean(metric)}: a run records it at its end, unless of an older "
                "version or with evaluation.amis=false; vaerun-eval run=DIR measures it for one run, and stores it "
                "in `evaluations` of its result.json"
            )
        examples = ", ".join(clean(key, 60) for key in sorted(available)[:20])
        hint = did_you_mean(metric, available) if same_name is None else f" Did you mean {clean(same_name, 60)}?"
        raise InputError(f"no finished run has the metric {clean(metric)}.{hint} Available: {examples}")


def _last(metric: str) -> str:
    return metric.rpartition("/")[2]


def choose_published(
    options: Options, requested: bool, runs: Sequence[RunSummary], notes: list[str]
) -> Published | None:
    """The published numbers if they apply to one of the tables; else a footnote, or an error if they were requested."""
    if options.published is None:
        return None
    published = load_published(options.published)
    metric = published.metric if published.metric in options.metrics else options.metrics[0]
    data = [run.setting("data") for run in runs]
    mismatch = published.mismatch(options.rows.keys, options.columns.keys, metric, data)
    if not mismatch:
        return published
    if requested:
        raise InputError(f"--published {published.name} does not apply: {mismatch}")
    notes.append(f"published numbers ({published.name}) omitted: {mismatch}")
    return None
