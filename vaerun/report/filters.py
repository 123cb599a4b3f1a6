"""The runs that `--where KEY=VALUE` asks for; of several values of one key, those with any of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vaerun.errors import InputError
from vaerun.report.protocol import canonical
from vaerun.report.runs import Run
from vaerun.report.text import clean
from vaerun.storage.yaml_files import parse_yaml
from vaerun.text import did_you_mean

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # which YAML takes for a word where it has no point or sign


def known_keys(runs: Sequence[Run]) -> list[str]:
    """Settings that some run has, sorted; a group such as model without its `.name`."""
    return sorted({key.removesuffix(".name") for run in runs for key in run.settings})


def filter_runs(runs: list[Run], conditions: Sequence[str]) -> list[Run]:
    """The runs that have one of the values of each key.

    Raises InputError for what is no KEY=VALUE, and where no run is left.
    """
    known = known_keys(runs)
    wanted: dict[str, set[str]] = {}
    for condition in conditions:
        key, equals, text = condition.partition("=")
        if not equals or not key:
            raise InputError(f"--where {clean(condition)}: write KEY=VALUE, e.g. trainer.epochs=15")
        wanted.setdefault(key, set()).add(canonical_argument(text))
    for key, values in wanted.items():
        there = {canonical(run.setting(key)): run.setting(key) for run in runs}
        if set(there) <= {"null"} and "null" not in values:
            raise InputError(f"--where {clean(key)}: no run has a value of it.{did_you_mean(key, known)}")
        runs = [run for run in runs if canonical(run.setting(key)) in values]
        if not runs:
            some = ", ".join(clean(value, 60) for value in list(there.values())[:8])
            raise InputError(f"--where {clean(key)}: no run has this value; there are: {some}")
    return runs


def canonical_argument(text: str) -> str:
    """A value as it is written on a command line, so that equal ones are equal."""
    try:
        value = parse_yaml(text)
    except ValueError:
        return canonical(text)
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = float(value)
    return canonical(value)
