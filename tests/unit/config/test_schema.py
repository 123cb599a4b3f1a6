"""The limits that stand beside the keys."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from omegaconf import OmegaConf

from vaerun.config.schema import Settings
from vaerun.config.settings import to_settings
from vaerun.config.validation import allowed_values
from vaerun.errors import InputError

PLAIN: dict[str, Any] = asdict(Settings()) | {
    "data": asdict(Settings().data) | {"name": "digits"},
    "model": asdict(Settings().model) | {"name": "vae", "latent_dim": 2, "likelihood": "gaussian"},
    "estimator": asdict(Settings().estimator) | {"name": "elbo", "function": {"_target_": "vaerun.estimators.elbo"}},
    "trainer": asdict(Settings().trainer) | {"epochs": 1, "batch_size": 8, "learning_rate": 0.1},
}


def checked(key: str, value: Any) -> Any:
    config = OmegaConf.create(PLAIN)
    OmegaConf.update(config, key, value)
    return OmegaConf.select(OmegaConf.structured(to_settings(config)), key)


@pytest.mark.parametrize("key", list(allowed_values()))
def test_a_value_at_a_limit_is_allowed_and_one_beyond_is_not(key: str) -> None:
    allowed = allowed_values()[key]
    default = OmegaConf.select(OmegaConf.create(PLAIN), key)
    is_list = allowed.length is not None or OmegaConf.is_list(default)

    def shaped(value: Any) -> Any:
        return [value] * (allowed.length or 1) if is_list else value

    for limit, inside, step in (
        (allowed.ge, True, -1), (allowed.gt, False, -1), (allowed.le, True, 1), (allowed.lt, False, 1),
    ):  # fmt: skip
        if limit is None:
            continue
        beyond = limit + step * (1 if isinstance(limit, int) else abs(limit) / 10)
        with pytest.raises(InputError, match=f"{key} must be"):
            checked(key, shaped(beyond))
        if inside:
            checked(key, shaped(limit))
        else:
            with pytest.raises(InputError, match=f"{key} must be"):
                checked(key, shaped(limit))
    for choice in allowed.choices or ():
        assert checked(key, choice) == choice
    if allowed.choices or allowed.pattern:
        with pytest.raises(InputError, match=key):
            checked(key, "no/thing")
