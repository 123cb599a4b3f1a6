"""Converts a composed configuration to typed, validated settings. Does not import torch, to keep `--cfg` fast."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationResolutionError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
    ValidationError,
)

from vaerun.config.schema import Settings
from vaerun.config.suggestions import suggest_key
from vaerun.config.validation import NEEDS_KEYS, check_groups, check_values, expand_switches, wrong_type
from vaerun.errors import InputError
from vaerun.storage.paths import expand_user


def dotted_keys(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all keys of a configuration."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield f"{prefix}{key}"
            yield from dotted_keys(value, f"{prefix}{key}.")


@cache
def schema_keys() -> tuple[str, ...]:
    """The dotted names of all keys of the schema."""
    return tuple(dotted_keys(OmegaConf.to_container(OmegaConf.structured(Settings))))


def to_settings(cfg: DictConfig) -> Settings:
    """Validate a composed configuration and return its settings. Raises InputError for an invalid key or value."""
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(plain, dict)
        expand_switches(plain)
        check_groups(plain)
        merged = OmegaConf.merge(OmegaConf.structured(Settings), plain)
        if absent := sorted(OmegaConf.missing_keys(merged)):
            raise InputError(_required(absent[0]))
        settings = OmegaConf.to_object(merged)
    except InterpolationToMissingValueError as error:
        raise InputError(missing_value(str(error))) from error
    except InterpolationKeyError as error:
        raise InputError(f"configuration: {str(error).splitlines()[0]}") from error
    except InterpolationResolutionError as error:
        line = str(error).splitlines()[0]
        if node := re.search("node `([^`]+)` is not a container", line):
            line = NEEDS_KEYS.format(node.group(1))
        raise InputError(line) from error
    except ConfigKeyError as error:
        raise InputError(f"unknown key '{error.full_key}'.{suggest_key(str(error.full_key), schema_keys())}") from error
    except OmegaConfBaseException as error:
        key, line = str(error.full_key), str(error).splitlines()[0]
        if "is not a ListConfig" in line:
            line = "write a list, such as [a,b]"
        expected = wrong_type(key, plain) if isinstance(error, ValidationError) else None
        raise InputError(expected or f"{key}: {line}") from error
    assert isinstance(settings, Settings)
    check_values(settings)
    return settings


def absolute_data_paths(plain: dict[str, Any]) -> dict[str, Any]:
    """Plain settings with absolute paths of the data, which leaves the fingerprint as it is."""
    data = plain["data"]
    absolute = data | {key: str(expand_user(data[key]).absolute()) for key in ("root", "path") if data[key]}
    if data["path"] and "path" in data["source"]:  # a copy of data.path
        absolute["source"] = data["source"] | {"path": absolute["path"]}
    return plain | {"data": absolute}


def missing_value(text: str) -> str:
    """The error line for a missing required value, from OmegaConf's message."""
    match = re.search(r"[Mm]issing mandatory value: ([\w.]+)", text)
    return _required(match.group(1)) if match else " ".join(text.split())


def _required(key: str) -> str:
    return f"{key} must be given: {key}=VALUE"
