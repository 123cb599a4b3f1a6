"""The cells of the CIFAR-10 comparison: its experiments sweep over the cells of the paper's table."""

from __future__ import annotations

from dataclasses import asdict

import hydra
import pytest
import yaml

from vaerun.cli.compose import without_cells
from vaerun.cli.help import choices
from vaerun.config.identity import fingerprint
from vaerun.config.plugins import builtin_config_dir, group_file
from vaerun.config.schema import Settings
from vaerun.config.settings import to_settings

METHODS = ("sa_vae", "vae_hf", "vae_iaf", "vlae")
EXPERIMENTS = ("vlae_cifar10_quick", "vlae_cifar10_small", "vlae_cifar10_big")


def compose(*overrides: str) -> Settings:
    with hydra.initialize_config_dir(str(builtin_config_dir()), version_base="1.3"):
        return to_settings(hydra.compose("config", list(overrides)))


def swept(experiment: str) -> dict[str, str]:
    plain = yaml.safe_load(group_file("experiment", experiment).read_text(encoding="utf-8"))
    return dict(plain["hydra"]["sweeper"]["params"])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_method_at_every_number_of_steps(experiment: str) -> None:
    cells = swept(experiment)["cell"].split(",")
    assert cells == ["vae", *(f"{method}_t{steps}" for method in METHODS for steps in (1, 2, 4, 8))]
    assert swept(experiment)["seed"] == "range(3)"
    assert set(cells) <= set(choices("cell", [builtin_config_dir()]))
    seen = set()
    for cell in cells:
        settings = compose(f"experiment={experiment}", f"cell={cell}")
        method, _, steps = cell.partition("_t")
        assert settings.model.name == method
        assert settings.model.inference is not None
        assert settings.model.inference.get("steps") == (int(steps) if steps else None)
        assert settings.sweep.table.published == "vlae_cifar10"
        assert settings.estimator.name == ("elbo_mc" if method == "vae_iaf" else "elbo")
        seen.add(fingerprint(asdict(settings), "data"))
    assert len(seen) == len(cells)


def test_the_step_size_that_was_chosen() -> None:
    for steps in (1, 2, 4, 8):
        settings = compose("experiment=vlae_cifar10_quick", f"cell=sa_vae_t{steps}")
        assert settings.model.inference is not None
        assert settings.model.inference["step_size"] == 0.03


@pytest.mark.parametrize(
    ("words", "left_out"),
    [
        (["-m", "experiment=vlae_cifar10_quick", "model=vae"], True),
        (["-m", "experiment=vlae_cifar10_quick", "model=vae", "cell=vlae_t1"], False),
        (["-m", "experiment=vlae_cifar10_quick", "seed=1"], False),
        (["-m", "experiment=cifar10_quick", "model=vae"], False),
        (["-m", "model=vae,vlae"], False),
        (["-m", "experiment=vlae_cifar10_quick,cifar10_quick", "model=vae"], False),
    ],
)
def test_a_model_of_its_own_leaves_the_cells_out(words: list[str], left_out: bool) -> None:
    assert without_cells(words) == words + (["~hydra.sweeper.params.cell"] if left_out else [])


def test_how_a_sweep_is_run_is_no_part_of_what_it_is() -> None:
    plain = compose("cell=vlae_t2")
    other = compose(
        "cell=vlae_t2", "sweep.jobs=4", "sweep.fail_fast=true", "sweep.job_minutes=3", "trainer.processes=2",
        "sweep.table.published=vlae_cifar10",
    )  # fmt: skip
    assert fingerprint(asdict(plain), "data") == fingerprint(asdict(other), "data")
    assert fingerprint(asdict(plain), "data") != fingerprint(asdict(compose("cell=vlae_t4")), "data")
