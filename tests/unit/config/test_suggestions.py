"""Suggestions for unknown keys: they exist, they work, and none misleads."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from vaerun.cli.help import GROUPS
from vaerun.config.familiar import BY_NAME, ROWS, plain_name
from vaerun.config.overrides import override
from vaerun.config.plugins import builtin_config_dir
from vaerun.config.settings import dotted_keys, to_settings
from vaerun.config.suggestions import suggest_key

CONFIGURATIONS = (  # together they have every key that the table names
    ("model=vlae",),
    ("model=dcgan",),
    ("model=gan",),
    ("network=conv",),
    ("data=folder", "data.path=x", "data.image_size=8"),
)
CHOICES = {"data": "mnist", "model": "vae", "network": "mlp", "estimator": "iwae"}


@cache
def composed(words: tuple[str, ...]) -> Any:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(builtin_config_dir()), version_base="1.3"):
        return hydra.compose("config", list(words))


@cache
def known(words: tuple[str, ...] = ("model=vlae",)) -> tuple[str, ...]:
    return (*GROUPS, *dotted_keys(OmegaConf.to_container(composed(words))))


def test_names_are_listed_once() -> None:
    names = [plain_name(name) for row in ROWS for name in row[0].split()]
    assert sorted(names) == sorted(set(names))
    assert set(names) == set(BY_NAME)
    assert all(keys or note for _, keys, note in ROWS)


def test_every_key_of_the_table_can_be_set_as_suggested() -> None:
    left = {key for row in ROWS for key in row[1]}
    for words in CONFIGURATIONS:
        config = composed(words)
        here = {key for key in left if key in CHOICES or key in known(words)}
        values = {key: CHOICES.get(key, OmegaConf.select(config, key)) for key in here if key not in GROUPS}
        settings = to_settings(composed((*words, *(override(key, value) for key, value in sorted(values.items())))))
        assert settings == to_settings(config)  # set to its own value
        left -= values.keys()
    assert left == CHOICES.keys()  # groups
    for group, choice in CHOICES.items():
        to_settings(composed((f"{group}={choice}",)))


def test_commands_in_notes_are_accepted() -> None:
    words = [w for row in ROWS for w in re.findall(r"(?<![\w.])([a-z][\w.]*=(?:\[[^]]*\]|[\w.-]+))", row[2])]
    words = [w.replace("=N", "=2") for w in words if not w.endswith(("=PATH", "=DIR")) and "(" not in w]
    words = [w for w in words if not w.startswith(("quality", "seed=range"))]
    assert len(words) > 10
    for word in words:
        base = ("data.path=x",) if word in ("data=folder", "data=npz") else ()
        to_settings(composed((word, *base)))


@pytest.mark.parametrize("group", ["", "trainer.", "model.", "data.", "nonsense."])
def test_every_name_of_the_table_is_answered(group: str) -> None:
    for names, keys, note in ROWS:
        for name in names.split():
            for spelled in (name, name.upper(), name.replace("_", "-")):
                if f"{group}{name}" in known():
                    continue
                line = suggest_key(f"{group}{spelled}", known())
                assert any(key in line for key in keys) if keys else note[1:] in line, (group, spelled, line)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("lr", "Did you mean trainer.learning_rate?"),
        ("trainer.lr", "Did you mean trainer.learning_rate?"),
        ("model.optimizer.lr", "Did you mean trainer.learning_rate?"),
        ("trainer.gpus", "Did you mean trainer.device?"),
        ("num_workers", "The data live on the device"),
        ("trainer.num_worker", "The data live on the device"),
        ("trainer.batch", "Did you mean trainer.batch_size?"),
        ("K", "Did you mean evaluation.samples or estimator.samples?"),
        ("estimator.K", "Did you mean estimator.samples?"),
        ("evaluation.num_samples", "Did you mean evaluation.samples?"),
        ("model.hidden", "Did you mean model.encoder.hidden or model.decoder.hidden?"),
        ("trainer.ema", "Its name here is trainer.average (for adversarial models), which"),
        # by spelling
        ("trainer.epoch", "Did you mean trainer.epochs?"),
        ("trainer.ephocs", "Did you mean trainer.epochs?"),
        ("trianer.epochs", "Did you mean trainer.epochs?"),
        ("modle", "Did you mean model?"),
        ("leraning_rate", "Did you mean trainer.learning_rate?"),
        ("model.inference.damp", "Did you mean model.inference.damping?"),
        ("evaluation.gap.steps", "Did you mean evaluation.gap.max_steps?"),
        ("evaluation.annealing.temperature", "Did you mean evaluation.annealing.temperatures?"),
        ("evaluation.amis.start", "Did you mean evaluation.amis.starts?"),
        ("gaps", "Did you mean evaluation.gaps?"),
    ],
)
def test_suggestion(key: str, says: str) -> None:
    assert suggest_key(key, known()).strip().startswith(says)


@pytest.mark.parametrize(
    "key", ["trainer.foo", "foo", "trainer.xyzzy", "model.inference.spam", "evaluation.frobnicate"]
)
def test_no_idea_is_better_than_a_wrong_one(key: str) -> None:
    assert suggest_key(key, known()) == ""


def test_keys_of_the_model_that_was_chosen() -> None:
    gan = known(("model=gan",))
    assert suggest_key("K", gan) == " Did you mean evaluation.generated.samples?"
    assert suggest_key("hidden", gan).startswith(" Did you mean model.generator.hidden or model.discriminator.hidden?")
    assert suggest_key("ema_decay", gan).startswith(" Did you mean trainer.average?")
    assert suggest_key("lr", ["evaluation.samples"], "at all") == " Its name here is trainer.learning_rate, at all"
