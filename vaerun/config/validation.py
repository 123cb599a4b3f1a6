"""Validates settings against the schema: types, ranges, choices. Does not import torch, to keep `--cfg` fast."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from vaerun.config.schema import Allowed, Settings
from vaerun.errors import InputError
from vaerun.storage.plain_values import flatten
from vaerun.text import did_you_mean, is_valid_unicode, printable

MAX_FLOAT = 3e38  # the largest float32 is 3.4e38
MAX_INT = 2**63  # tensors hold int64

NEEDS_KEYS = "{0} is a group of keys: write {0}.KEY=VALUE"
SWITCH = "enabled"  # groups with this key may be given as true or false
_TYPES: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    list[int]: "a list of integers, such as [1,2]",
    list[float]: "a list of numbers, such as [0.1,0.2]",
    list[str]: "a list of strings, such as [a,b]",
    list[Any]: "a list, such as [a,b]",
}
_ELEMENTS: dict[Any, type | tuple[type, ...]] = {str: str, int: int, float: (int, float)}


def value_of(settings: Settings, key: str) -> Any:
    """The value of a dotted key; None if it belongs to an optional group that is not set."""
    value: Any = settings
    for part in key.split("."):
        value = None if value is None else getattr(value, part)
    return value


@cache
def allowed_values() -> dict[str, Allowed]:
    """Allowed values by dotted key, for all keys of the schema with a restriction."""
    return dict(_allowed(Settings, ""))


def _allowed(schema: Any, prefix: str) -> Iterator[tuple[str, Allowed]]:
    hints = get_type_hints(schema)
    for field in fields(schema):
        if "allowed" in field.metadata:
            yield f"{prefix}{field.name}", field.metadata["allowed"]
        group = _group(hints[field.name])
        if group is not None:
            yield from _allowed(group, f"{prefix}{field.name}.")


def _group(hint: Any) -> Any:
    """The dataclass of a group from its (optional) type hint; None if the hint is not a group."""
    return next((h for h in (hint, *get_args(hint)) if is_dataclass(h)), None)


# -- of a composed configuration --------------------------------------------------------------------------------------


def expand_switches(plain: Any, schema: Any = Settings) -> None:
    """Replace true or false in place of a group that has the key `enabled` by that key, inside nested mappings."""
    for name, hint in get_type_hints(schema).items():
        group = _group(hint)
        if group is None or name not in plain:
            continue
        if isinstance(plain[name], bool) and SWITCH in get_type_hints(group):
            plain[name] = {SWITCH: plain[name]}
        elif isinstance(plain[name], dict):
            expand_switches(plain[name], group)


def check_groups(plain: Any, schema: Any = Settings, prefix: str = "") -> None:
    """Raise InputError for a single value in place of a group; OmegaConf's error would not name the key."""
    for name, hint in get_type_hints(schema).items():
        group = _group(hint)
        if group is None or name not in plain or plain[name] == "???" or (plain[name] is None and group is not hint):
            continue
        if not isinstance(plain[name], dict):
            switch = ", =true or =false" if SWITCH in get_type_hints(group) else ""
            raise InputError(NEEDS_KEYS.format(f"{prefix}{name}") + switch)
        check_groups(plain[name], group, f"{prefix}{name}.")


def wrong_type(key: str, plain: Any) -> str | None:
    """The error line for a value of the wrong type; None if the schema does not give the type of the key."""
    hint: Any = Settings
    key = key.partition("[")[0]  # for a wrong element, quote the whole list
    for part in key.split("."):
        group = _group(hint)
        hint = None if group is None else get_type_hints(group).get(part)
        if hint is None or not isinstance(plain, dict) or part not in plain:
            return None
        plain = plain[part]
    options = get_args(hint) if type(None) in get_args(hint) else (hint,)
    if get_origin(options[0]) is dict:
        return NEEDS_KEYS.format(key)
    if options[0] not in _TYPES:
        return None
    expected = _TYPES[options[0]]
    if len(options) > 1:
        expected += ", or null" if "," in expected else " or null"
    quoted = "null" if plain is None else printable(plain, 100)
    if isinstance(plain, str):  # quoted, to make an empty string visible
        quoted = f"'{quoted}'"
    return f"{key} must be {expected}, got {quoted}"


# -- of typed settings ------------------------------------------------------------------------------------------------


def check_values(settings: Settings) -> None:
    """Raise InputError for a value that the schema does not allow."""
    _check_lists(settings)
    for key, leaf in flatten(asdict(settings)):
        for value in leaf if isinstance(leaf, list) else [leaf]:
            _check_size(key, value)
    for key, allowed in allowed_values().items():
        _check_allowed(key, value_of(settings, key), allowed)
    if settings.trainer.replicas > 1 and settings.trainer.processes > 1:
        raise InputError("trainer.replicas and trainer.processes cannot be combined: set one of them to 1")


def _check_lists(settings: Any, prefix: str = "") -> None:
    """Raise InputError for nested lists; OmegaConf only checks the types of plain elements."""
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        key, value, hint = f"{prefix}{field.name}", getattr(settings, field.name), hints[field.name]
        if is_dataclass(value):
            _check_lists(value, f"{key}.")
        element = next((get_args(h)[0] for h in (hint, *get_args(hint)) if get_origin(h) is list), None)
        if not isinstance(value, list | tuple) or element not in _ELEMENTS:
            continue
        if any(not isinstance(v, _ELEMENTS[element]) or isinstance(v, bool) for v in value):
            raise InputError(f"{key} must be {_TYPES[list[element]]}, got {printable(value, 100)}")  # type: ignore[valid-type]


def _check_size(key: str, value: Any) -> None:
    """Raise InputError for numbers that tensors cannot hold, and for strings that cannot be written to a file."""
    if isinstance(value, int) and abs(value) >= MAX_INT:
        raise InputError(f"{key} must be a number between -2^63 and 2^63, got {printable(value, 30)}")
    if isinstance(value, float) and MAX_FLOAT < abs(value) < math.inf:
        raise InputError(f"{key} must be between -{MAX_FLOAT:g} and {MAX_FLOAT:g}, got {value:g}")
    if isinstance(value, str) and not is_valid_unicode(value):
        raise InputError(f"{key} is not utf-8 text: {printable(value, 100)}; rename it")


def _check_allowed(key: str, value: Any, allowed: Allowed) -> None:
    if allowed.choices is not None and value not in allowed.choices:
        choices = ["null" if choice is None else choice for choice in allowed.choices]
        raise InputError(f"{key}={value}: choose one of {', '.join(choices)}.{did_you_mean(str(value), choices)}")
    if allowed.pattern is not None and not re.fullmatch(allowed.pattern[0], value):
        raise InputError(f"{key} '{printable(value, 100)}': use {allowed.pattern[1]} only")
    if isinstance(value, list | tuple):
        complete = len(value) == allowed.length if allowed.length else bool(value)
        if not complete or any(_exceeded(element, allowed) for element in value):
            count, limits = allowed.length or "one or more", " and ".join(_limits(allowed))
            raise InputError(f"{key} must be {count} finite numbers {limits}, got {list(value)}")
    elif isinstance(value, int | float) and (limit := _exceeded(value, allowed)):
        raise InputError(f"{key} must be {limit}, got {value:.15g}")


def _exceeded(value: float, allowed: Allowed) -> str | None:
    """Description of the bound that the value violates, or None."""
    if not math.isfinite(value):
        return "a finite number"
    return next((words for words, within in _limits(allowed).items() if not within(value)), None)


def _limits(allowed: Allowed) -> dict[str, Callable[[float], bool]]:
    """Map the description of each bound to a function that tests it."""
    limits: dict[str, Callable[[float], bool]] = {}
    if (ge := allowed.ge) is not None:
        limits[f"at least {ge:.15g}"] = lambda value: value >= ge
    if (gt := allowed.gt) is not None:
        limits[f"above {gt:.15g}"] = lambda value: value > gt
    if (le := allowed.le) is not None:
        limits[f"at most {le:.15g}"] = lambda value: value <= le
    if (lt := allowed.lt) is not None:
        limits[f"below {lt:.15g}"] = lambda value: value < lt
    return limits
