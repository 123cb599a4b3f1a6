"""Selecting runs by `--where KEY=VALUE`; several values of one key select the runs with any of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vaerun.errors import InputError
from vaerun.report.protocol import canonical
from vaerun.report.runs import RunSummary
from vaerun.report.text import clean
from vaerun.storage.yaml_files import parse_yaml
from vaerun.text import did_you_mean

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # a string in YAML unless it has a point and a sign


def known_keys(runs: Sequence[RunSummary]) -> list[str]:
    """Settings that at least one run has, sorted; a group such as model without its `.name`."""
    return sorted({key.removesuffix(".name") for run in runs for key in run.settings})


def filter_runs(runs: list[RunSummary], conditions: Sequence[str]) -> list[RunSummary]:
    """The runs that satisfy all conditions.

    Raises InputError for a condition that is not KEY=VALUE, or if no run satisfies them.
    """
    known = known_keys(runs)
    accepted: dict[str, set[str]] = {}
    for condition in conditions:
        key, equals, text = condition.partition("=")
        if not equals or not key:
            raise InputError(f"--where {clean(condition)}: write KEY=VALUE, e.g. trainer.epochs=15")
        accepted.setdefault(key, set()).add(canonical_argument(text))
    for key, values in accepted.items():
        present = {canonical(run.setting(key)): run.setting(key) for run in runs}
        if set(present) <= {"null"} and "null" not in values:
            raise InputError(f"--where {clean(key)}: no run has this key.{did_you_mean(key, known)}")
        runs = [run for run in runs if canonical(run.setting(key)) in values]
        if not runs:
            examples = ", ".join(clean(value, 60) for value in list(present.values())[:8])
            raise InputError(f"--where {clean(key)}: no run has this value; available: {examples}")
    return runs


def canonical_argument(text: str) -> str:
    """The canonical form of a value as written on the command line, see protocol.canonical."""
    try:
        value = parse_yaml(text)
    except ValueError:
        return canonical(text)
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = float(value)
    return canonical(value)
