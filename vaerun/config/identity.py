"""What identifies a run: the settings that can change its result, their hash, and the name of its folder."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from vaerun.config.schema import Settings
from vaerun.incidental import DATA_PATHS, is_incidental
from vaerun.storage.plain_values import flatten

NUMERICS = 1  # increased whenever equal settings, defaults among them, give other numbers


@cache
def _defaults() -> dict[str, Any]:
    return dict(flatten(OmegaConf.to_container(OmegaConf.structured(Settings))))


def identity(plain: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that can change a result.

    Keys with the schema's default are left out, so that adding a key, whose default does what was done before, does
    not change the identity of older runs. Changing a default therefore requires a new NUMERICS.
    """
    defaults = _defaults()
    return {k: v for k, v in flatten(plain) if not is_incidental(k, v) and not (k in defaults and v == defaults[k])}


def fingerprint(plain: dict[str, Any], data_sha256: str) -> str:
    """Hash of all that makes two runs the same: settings, data and NUMERICS; 64 hex digits."""
    settings = {k: v for k, v in identity(plain).items() if k not in DATA_PATHS}
    record = {"settings": settings, "data_sha256": data_sha256, "numerics": NUMERICS}
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()


def short_name(plain: dict[str, Any]) -> str:
    """DATA/MODEL/ESTIMATOR-seedN-HASH: the default folder of a run, below `outputs`."""
    digest = hashlib.sha256(json.dumps(identity(plain), sort_keys=True, default=str).encode()).hexdigest()[:10]
    groups = [plain.get(group) for group in ("data", "model", "estimator")]
    parts = [str(group.get("name") if isinstance(group, dict) else group) for group in groups]
    data, model, estimator = ("".join(c if c.isalnum() or c in "-_." else "_" for c in p) for p in parts)
    return f"{data}/{model}/{estimator}-seed{plain.get('seed')}-{digest}"
