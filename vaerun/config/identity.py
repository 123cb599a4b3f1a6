"""Identity of a run: the settings that can affect its result, their hash, and the default folder name."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from vaerun.config.schema import Settings
from vaerun.incidental import DATA_PATHS, is_incidental
from vaerun.storage.plain_values import flatten

NUMERICS = 1  # increment whenever the same settings, including defaults, give different numbers


@cache
def _defaults() -> dict[str, Any]:
    return dict(flatten(OmegaConf.to_container(OmegaConf.structured(Settings))))


def identity(plain: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that can affect the result.

    Keys with the schema's default are left out, so that adding a key whose default preserves earlier behaviour, or only
    adds numbers to the results (evaluation.amis), does not change the identity of older runs: a finished one is not
    trained again. Changing a default therefore requires incrementing NUMERICS.
    """
    defaults = _defaults()
    return {k: v for k, v in flatten(plain) if not is_incidental(k, v) and not (k in defaults and v == defaults[k])}


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings that can affect the result and differ between two configurations, with both values.

    Locations of the data are left out, as in `fingerprint`.
    """
    first, second, defaults = identity(one), identity(other), _defaults()
    pairs = {k: (first.get(k, defaults.get(k)), second.get(k, defaults.get(k))) for k in [*first, *second]}
    return {k: pair for k, pair in pairs.items() if pair[0] != pair[1] and k not in DATA_PATHS}


def fingerprint(plain: dict[str, Any], data_sha256: str) -> str:
    """Hash of settings, data and NUMERICS, 64 hex digits; equal for two executions of the same run."""
    settings = {k: v for k, v in identity(plain).items() if k not in DATA_PATHS}
    record = {"settings": settings, "data_sha256": data_sha256, "numerics": NUMERICS}
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()


def short_name(plain: dict[str, Any]) -> str:
    """Default folder of a run below `outputs`: DATA/MODEL/ESTIMATOR-seedN-HASH."""
    digest = hashlib.sha256(json.dumps(identity(plain), sort_keys=True, default=str).encode()).hexdigest()[:10]
    groups = [plain.get(group) for group in ("data", "model", "estimator")]
    parts = [str(group.get("name") if isinstance(group, dict) else group) for group in groups]
    data, model, estimator = ("".join(c if c.isalnum() or c in "-_." else "_" for c in p) for p in parts)
    return f"{data}/{model}/{estimator}-seed{plain.get('seed')}-{digest}"
