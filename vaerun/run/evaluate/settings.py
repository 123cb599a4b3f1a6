"""Settings of a later evaluation of a run: those of the run, with overrides applied where they make sense."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vaerun.config.plugins import group_file
from vaerun.config.schema import Settings
from vaerun.config.settings import to_settings
from vaerun.config.validation import check_groups, expand_switches
from vaerun.errors import InputError
from vaerun.storage.yaml_files import read_yaml
from vaerun.text import printable

PIXELS = ("binarize", "dequantize", "logit")
"""Preprocessing that the model was trained with, which is also applied to another data set."""


def take_data_changed(overrides: dict[str, Any]) -> bool:
    """Remove `data.changed`, which is no setting of a run, from the overrides, and return its value."""
    data = overrides.get("data", {})
    changed = data.pop("changed", False) if isinstance(data, dict) else False
    if not isinstance(changed, bool):
        raise InputError(f"data.changed must be true or false, got {printable(changed, 100)}")
    return changed


def merge_settings(config: Settings, overrides: dict[str, Any]) -> Settings:
    """Apply overrides to the settings of a run. Raises InputError for overrides that do not apply to the run."""
    settings: dict[str, Any] = asdict(config)
    run_data, data = settings["data"], overrides.get("data", {})
    name = data.get("name", run_data["name"])
    if not isinstance(name, str):
        raise InputError(f"data.name must be a string, got {printable(name, 100)}: data=NAME selects data")
    defaults = read_yaml(group_file("data", name))
    for key in data:
        if key not in defaults or (key == "source" and "name" not in data):
            raise InputError(f"data.{key} is not a key of data={defaults['name']} that can be set")
    if "name" in data:  # keys of another data set, with the run's preprocessing
        settings["data"] = {k: run_data[k] for k in PIXELS}
        data = {k: v for k, v in data.items() if k not in PIXELS or v != defaults[k]}
    if any(data.get(k, run_data[k]) != run_data[k] for k in PIXELS):
        raise InputError(f"data.{'/'.join(PIXELS)} are fixed by the model's training: train again to change them")
    _check_evaluation_keys(config, overrides.get("evaluation", {}))
    changes = {**overrides, "data": data}
    expand_switches(changes)
    check_groups(changes)
    try:
        merged = OmegaConf.merge(OmegaConf.create(settings), OmegaConf.create(changes))
    except OmegaConfBaseException as error:
        # OmegaConf's error for a list in place of a group does not name the key.
        key = error.full_key or _mismatched_key(settings, changes)
        raise InputError(f"{key} must be a list, or a group of keys, as it was for the run") from error
    return to_settings(merged)  # type: ignore[arg-type]


def _mismatched_key(settings: dict[str, Any], changes: dict[str, Any], prefix: str = "") -> str:
    """The first key that is a list in one mapping and a group of keys in the other."""
    for name, value in changes.items():
        current = settings.get(name)
        if isinstance(value, dict) and isinstance(current, dict):
            if key := _mismatched_key(current, value, f"{prefix}{name}."):
                return key
        elif isinstance(value, dict | list) and isinstance(current, dict | list) and type(value) is not type(current):
            return f"{prefix}{name}"
    return ""


def _check_evaluation_keys(config: Settings, overrides: dict[str, Any]) -> None:
    """Raise InputError for keys of `evaluation` that do not apply to the run's model family."""
    file = "adversarial" if config.model.family == "adversarial" else "default"
    known = read_yaml(group_file("evaluation", file))
    for key, value in overrides.items():
        if key in ("gaps", "gradient_noise", "parzen"):  # preflight rejects it with a reason
            continue
        inner = [f"{key}.{k}" for k in value if k not in known[key]] if _is_group(known.get(key), value) else []
        for unknown in [key] if key not in known else inner:
            if hasattr(config.evaluation, key):  # for unknown keys, the schema suggests a similar one
                raise InputError(f"evaluation.{unknown} does not apply to model={config.model.name}: omit it")


def _is_group(known: Any, value: Any) -> bool:
    return isinstance(known, dict) and bool(known) and isinstance(value, dict)
