"""Every command in README and docs/ is one that Hydra composes and the settings accept."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from vaerun.config.overrides import parse_overrides
from vaerun.config.plugins import builtin_config_dir
from vaerun.config.schema import EvaluationSettings, Settings
from vaerun.config.settings import to_settings
from vaerun.storage.yaml_files import read_yaml

ROOT = Path(__file__).parents[3]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
KEY = re.compile(r"[~+]*[\w./@]+=.*")


def commands(name: str) -> dict[str, list[str]]:
    """Arguments of the commands of this name in fenced blocks, up to the explanation beside them."""
    found = {}
    for path in DOCUMENTS:
        for block in re.findall(r"^```\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL):
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                if not line.startswith(f"{name} ") or "..." in line:
                    continue
                words = shlex.split(line, comments=True)[1:]
                end = next(
                    (i for i, w in enumerate(words) if not w.startswith("-") and not KEY.fullmatch(w)), len(words)
                )
                found[f"{path.relative_to(ROOT)}: {' '.join(words[:end])}"] = words[:end]
    return found


def first_job(words: list[str]) -> list[str]:
    """The overrides of a sweep's first job, without Hydra's own."""
    overrides = OverridesParser.create().parse_overrides([w for w in words if not w.startswith("-")])
    job = []
    for override in overrides:
        if override.key_or_group.startswith("hydra"):
            continue
        value = next(override.sweep_string_iterator()) if override.is_sweep_override() else override.get_value_string()
        job.append(f"{override.get_key_element()}={value}")
    return job


COMMANDS = commands("vaerun")


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 20
    assert "model=vlae" in COMMANDS["README.md: model=vlae data=cifar10"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_composes(command: str) -> None:
    with hydra.initialize_config_dir(str(builtin_config_dir()), version_base="1.3"):
        to_settings(hydra.compose("config", first_job(COMMANDS[command])))


EVALUATIONS = commands("vaerun-eval")


@pytest.mark.parametrize("command", EVALUATIONS)
def test_a_documented_evaluation_is_valid(command: str) -> None:
    run, *words = EVALUATIONS[command]
    assert run.startswith("run=")
    OmegaConf.merge(OmegaConf.structured(EvaluationSettings), parse_overrides(words).get("evaluation", {}))


def keys(config: object, prefix: str) -> Iterator[str]:
    """Dotted names of a nested mapping's keys."""
    for key, value in config.items() if isinstance(config, dict) else ():
        yield f"{prefix}{key}"
        yield from keys(value, f"{prefix}{key}.")


def known_keys() -> set[str]:
    """Every key that some choice of some group has."""
    known = set(keys(OmegaConf.to_container(OmegaConf.structured(Settings)), ""))
    for path in builtin_config_dir().glob("*/*.yaml"):
        group = "model" if path.parent.name == "network" else path.parent.name
        known |= set(keys(read_yaml(path), f"{group}."))
    return known | set(keys(read_yaml(builtin_config_dir() / "config.yaml"), ""))


def test_documented_keys_exist() -> None:
    quoted = {word for path in DOCUMENTS for word in re.findall(r"`([^`\n]+)`", path.read_text(encoding="utf-8"))}
    pattern = re.compile(r"((?:data|model|estimator|trainer|evaluation|sweep)\.[a-z_.\d]*[a-z_\d])(=\S*)?")
    named = {match.group(1) for word in quoted if (match := pattern.fullmatch(word))}
    assert len(named) > 50
    assert named - known_keys() == {"sweep.json", "data.changed"}  # a file; a key of vaerun-eval alone
