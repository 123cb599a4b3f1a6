"""The presets of configs/hydra/ with their plugins, whose presets they replace, and without."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[3] / "configs" / "hydra"
PLUGINS = {
    "launcher/submitit_slurm": ("hydra_submitit_launcher", "slurm"),
    "launcher/ray": ("hydra_ray_launcher", "ray"),
    "sweeper/optuna": ("hydra_optuna_sweeper", "optuna"),
}
WITHOUT = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name == "hydra_plugins":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Without())
"""


def call(env: dict[str, str], folder: Path, *words: str, before: str = "") -> tuple[int, str, str]:
    code = f"{before}\nimport sys; sys.argv[0] = 'vaerun'; from vaerun.cli.main import main; main()"
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout, done.stderr


def test_every_preset_is_known_here() -> None:
    assert {str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.glob("*/*.yaml")} == set(PLUGINS)


@pytest.mark.parametrize("preset", PLUGINS)
def test_without_its_plugin_a_preset_names_the_extra(env: dict[str, str], tmp_path: Path, preset: str) -> None:
    group, _, name = preset.partition("/")
    code, _, said = call(env, tmp_path, "-m", f"hydra/{group}={name}", "seed=0,1", before=WITHOUT)
    assert code == 2
    line = f"hydra/{group}={name} needs an extra: pip install 'vaerun[{PLUGINS[preset][1]}]'"
    assert said == f"vaerun: error: {line}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("preset", PLUGINS)
def test_a_preset_takes_the_place_of_its_plugins_own(env: dict[str, str], tmp_path: Path, preset: str) -> None:
    plugin = PLUGINS[preset][0]
    if find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{plugin}") is None:
        pytest.skip(f"{plugin} is not installed: pip install 'vaerun[{PLUGINS[preset][1]}]'")
    group, _, name = preset.partition("/")
    code, shown, said = call(env, tmp_path, f"hydra/{group}={name}", "--cfg", "hydra")
    assert code == 0, said
    assert said == ""
    found = yaml.safe_load(shown)["hydra"][group]
    ours = yaml.safe_load((FOLDER / f"{preset}.yaml").read_text())
    ours.pop("defaults", None)
    assert {key: found[key] for key in ours} == ours
    assert set(found) - set(ours) <= {"sampler"}
