"""The configuration checked, and what identifies a run. No torch here: `--cfg` stays quick."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationResolutionError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
    ValidationError,
)

from vaerun.config.schema import (
    AnnealingSettings,
    CodeSettings,
    DataSettings,
    EstimatorSettings,
    EvaluationSettings,
    GapSettings,
    GeneratedSettings,
    ModelSettings,
    NoiseSettings,
    ObservationSettings,
    Settings,
    SweepSettings,
    TableSettings,
    TrainerSettings,
)
from vaerun.config.validation import check_values, value_of
from vaerun.errors import InputError
from vaerun.incidental import DATA_PATHS, is_incidental
from vaerun.storage.plain_values import flatten
from vaerun.text import did_you_mean, printable

__all__ = [
    "NUMERICS",
    "AnnealingSettings",
    "CodeSettings",
    "DataSettings",
    "EstimatorSettings",
    "EvaluationSettings",
    "GapSettings",
    "GeneratedSettings",
    "ModelSettings",
    "NoiseSettings",
    "ObservationSettings",
    "Settings",
    "SweepSettings",
    "TableSettings",
    "TrainerSettings",
    "check",
    "check_groups",
    "fingerprint",
    "identity",
    "keys",
    "missing",
    "short_name",
    "value_of",
]

NUMERICS = 1  # raised whenever the same settings, a default among them, give other numbers


def keys(config: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys of a configuration."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield f"{prefix}{key}"
            yield from keys(value, f"{prefix}{key}.")


def check(cfg: DictConfig) -> Settings:
    """The composed configuration as typed settings. Raises InputError in one line for what does not fit."""
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(plain, dict)
        check_groups(plain)
        merged = OmegaConf.merge(OmegaConf.structured(Settings), plain)
        absent = sorted(OmegaConf.missing_keys(merged))
        if absent:
            raise InputError(f"{absent[0]} must be given: {absent[0]}=VALUE")
        settings = OmegaConf.to_object(merged)
    except InterpolationToMissingValueError as error:
        raise InputError(missing(str(error))) from error
    except InterpolationKeyError as error:
        raise InputError(f"configuration: {str(error).splitlines()[0]}") from error
    except InterpolationResolutionError as error:
        text = str(error).splitlines()[0]
        if single := re.search("node `([^`]+)` is not a container", text):
            text = _GROUP.format(single.group(1))
        raise InputError(text) from error
    except ConfigKeyError as error:
        known = list(keys(OmegaConf.to_container(OmegaConf.structured(Settings))))
        raise InputError(f"unknown key '{error.full_key}'.{did_you_mean(str(error.full_key), known)}") from error
    except OmegaConfBaseException as error:
        text = str(error).splitlines()[0]
        if "is not a ListConfig" in text:
            text = "write a list, such as [a,b]"
        told = _of_another_kind(str(error.full_key), plain) if isinstance(error, ValidationError) else None
        raise InputError(told or f"{error.full_key}: {text}") from error
    assert isinstance(settings, Settings)
    check_values(settings)
    return settings


_GROUP = "{0} is a group of keys: write {0}.KEY=VALUE"
_KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a single word",
    list[int]: "a list of whole numbers, such as [1,2]",
    list[float]: "a list of numbers, such as [0.1,0.2]",
    list[str]: "a list of words, such as [a,b]",
    list[Any]: "a list, such as [a,b]",
}


def _of_another_kind(key: str, plain: Any) -> str | None:
    """What to say of a key's value that is not of its kind; None where the schema does not say which that is."""
    hint: Any = Settings
    key = key.partition("[")[0]  # of an element of a list the list is shown
    for part in key.split("."):
        group = next((h for h in (hint, *get_args(hint)) if is_dataclass(h)), None)
        hint = None if group is None else get_type_hints(group).get(part)
        if hint is None or not isinstance(plain, dict) or part not in plain:
            return None
        plain = plain[part]
    options = get_args(hint) if type(None) in get_args(hint) else (hint,)
    if get_origin(options[0]) is dict:
        return _GROUP.format(key)
    if options[0] not in _KINDS:
        return None
    kind = _KINDS[options[0]] + (", or null" if len(options) > 1 else "")
    shown = "null" if plain is None else printable(plain, 100)
    if isinstance(plain, str):  # else an empty word would not be seen
        shown = f"'{shown}'"
    return f"{key} must be {kind}, got {shown}"


def check_groups(plain: Any, schema: Any = Settings, prefix: str = "") -> None:
    """Raises InputError for a single value where the schema has keys: OmegaConf does not say which one it is."""
    for name, hint in get_type_hints(schema).items():
        group = next((h for h in (hint, *get_args(hint)) if is_dataclass(h)), None)
        if group is None or name not in plain or plain[name] == "???" or (plain[name] is None and group is not hint):
            continue
        if not isinstance(plain[name], dict):
            raise InputError(_GROUP.format(f"{prefix}{name}"))
        check_groups(plain[name], group, f"{prefix}{name}.")


def missing(text: str) -> str:
    """The line for a value that must be given and was not, from OmegaConf's text."""
    found = re.search(r"[Mm]issing mandatory value: ([\w.]+)", text)
    return f"{found.group(1)} must be given: {found.group(1)}=VALUE" if found else " ".join(text.split())


@cache
def _defaults() -> dict[str, Any]:
    return dict(flatten(OmegaConf.to_container(OmegaConf.structured(Settings))))


def identity(plain: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that can change a result.

    What has the schema's default is left out, so that a key which is added later (its default being what was done
    before) leaves older runs what they are. A default that changes therefore needs another NUMERICS.
    """
    defaults = _defaults()
    return {k: v for k, v in flatten(plain) if not is_incidental(k, v) and not (k in defaults and v == defaults[k])}


def fingerprint(plain: dict[str, Any], data_sha256: str) -> str:
    """What makes two runs the same run: settings, data and the version of the numerics; 64 hex digits."""
    kept = {k: v for k, v in identity(plain).items() if k not in DATA_PATHS}
    record = {"settings": kept, "data_sha256": data_sha256, "numerics": NUMERICS}
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()


def short_name(plain: dict[str, Any]) -> str:
    """DATA/MODEL/ESTIMATOR-seedN-HASH: where the run of this configuration lives by default."""
    digest = hashlib.sha256(json.dumps(identity(plain), sort_keys=True, default=str).encode()).hexdigest()[:10]
    groups = [plain.get(group) for group in ("data", "model", "estimator")]
    parts = [str(group.get("name") if isinstance(group, dict) else group) for group in groups]
    data, model, estimator = ("".join(c if c.isalnum() or c in "-_." else "_" for c in p) for p in parts)
    return f"{data}/{model}/{estimator}-seed{plain.get('seed')}-{digest}"
