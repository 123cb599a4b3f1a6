"""The identity of a run: every setting that differs from its default, and no other."""

from __future__ import annotations

from dataclasses import asdict

import hydra
import pytest

from vaerun.config.identity import fingerprint, identity, short_name
from vaerun.config.plugins import builtin_config_dir
from vaerun.config.settings import to_settings


def plain(*words: str) -> dict:
    with hydra.initialize_config_dir(str(builtin_config_dir()), version_base="1.3"):
        return asdict(to_settings(hydra.compose("config", list(words))))


def test_a_key_that_a_later_version_adds_changes_nothing() -> None:
    older = plain("model=vae")
    del older["model"]["codes"], older["evaluation"]["quality"], older["trainer"]["winning_steps"]
    assert identity(older) == identity(plain("model=vae"))
    assert fingerprint(older, "a") == fingerprint(plain("model=vae"), "a")
    assert short_name(older) == short_name(plain("model=vae"))


@pytest.mark.parametrize(
    "word",
    ["seed=1", "trainer.betas=[0.5,0.999]", "evaluation.quality=true", "model.likelihood=bernoulli", "data.logit=true"],
)
def test_a_changed_setting_is_another_run(word: str) -> None:
    assert fingerprint(plain("model=vae", word), "a") != fingerprint(plain("model=vae"), "a")
    assert short_name(plain("model=vae", word)) != short_name(plain("model=vae"))


def test_codes_are_part_of_a_run() -> None:
    assert fingerprint(plain("model=infogan"), "a") != fingerprint(
        plain("model=infogan", "model.codes.continuous=1"), "a"
    )


@pytest.mark.parametrize("word", ["trainer.device=cpu", "trainer.log_every=7", "evaluation.pictures=3"])
def test_what_changes_no_result_is_left_out(word: str) -> None:
    assert fingerprint(plain("model=vae", word), "a") == fingerprint(plain("model=vae"), "a")
