"""KEY=VALUE words of `vaerun-eval` as a nested mapping."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vaerun.config.plugins import group_file
from vaerun.errors import InputError
from vaerun.storage.yaml_files import parse_yaml, read_yaml
from vaerun.text import printable

CHANGEABLE = ("data", "evaluation", "seed", "trainer.device")

_KEY = re.compile(r"[^.\[\]]+(\.[^.\[\]]+)*")


def parse(overrides: list[str]) -> dict[str, Any]:
    """KEY=VALUE words as a nested mapping; `data=NAME` gives {"data": {"name": NAME, ...}}, the file's keys.

    Raises InputError for what is no such word, or sets what an evaluation cannot change.
    """
    found = OmegaConf.create()
    for word in sorted(overrides, key=lambda w: not w.startswith("data=")):  # the choice first, then its keys
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InputError(f"cannot read '{word}': write KEY=VALUE, such as evaluation.samples=20000")
        if not any(key == k or key.startswith(f"{k}.") for k in CHANGEABLE) or key == "evaluation":
            raise InputError(
                f"vaerun-eval cannot set '{key}': it takes run=DIR, {', '.join(CHANGEABLE)} and their keys"
            )
        if not _KEY.fullmatch(key):
            raise InputError(f"unknown key '{key}': write KEY=VALUE, such as evaluation.samples=20000")
        parsed = _value(word, value)
        if key.startswith("trainer.") and not (key == "trainer.device" and isinstance(parsed, str)):
            raise InputError(f"cannot set '{word}': of `trainer` only trainer.device=auto, cpu, cuda, cuda:N or mps")
        if key == "data":
            parsed = read_yaml(group_file("data", value))
        elif _has_missing(parsed):
            raise InputError(f"{key} must be given: {key}=VALUE")
        try:
            OmegaConf.update(found, key, parsed, merge=True)
        except (OmegaConfBaseException, AttributeError, ValueError) as error:
            why = printable(error, 200)
            if "Cannot merge" in why:
                why = "that is a list or a group of keys where another of these belongs"
            raise InputError(f"cannot set '{printable(word, 100)}': {why}") from error
    container = OmegaConf.to_container(found, resolve=False)
    assert isinstance(container, dict)
    return {str(k): v for k, v in container.items()}


def _value(word: str, text: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise InputError(f"cannot read the value of '{printable(word, 100)}': {printable(error, 200)}") from error


def _has_missing(value: Any) -> bool:
    """Whether it is or holds `???`, which stands for no value."""
    if isinstance(value, dict | list):
        return any(_has_missing(v) for v in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and value == "???"
