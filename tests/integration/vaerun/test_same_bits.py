"""The same seed on the same machine trains the same parameters to the bit, whatever is logged, drawn or saved.

One run of each family is the reference; the others differ from it in settings that may only change what is recorded.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from support.runs.commands import FAST_AMIS, assert_same_bits, flat, load, shell
from torch import Tensor

from vaerun.config.plugins import builtin_config_dir
from vaerun.config.settings import to_settings
from vaerun.run.experiment import Experiment

pytestmark = pytest.mark.usefixtures("command_environment")
# 250 images in batches of 64: epochs of 4 steps whose last batch has 58; 14 steps end within the fourth epoch.
SHORT = """data.train_images=250 data.validation=40 trainer.batch_size=64 trainer.max_steps=14 trainer.log_every=3
trainer.device=cpu evaluation.images=20 evaluation.pictures=0"""
LIKELIHOOD = """model.encoder.hidden=[16] model.decoder.hidden=[16] model.latent_dim=4 evaluation.samples=30"""
LIKELIHOOD += " " + " ".join(FAST_AMIS)
FAMILIES = {
    "vae": LIKELIHOOD,
    "sa_vae": f"{LIKELIHOOD} model.inference.steps=2",
    "vlae": f"{LIKELIHOOD} model.inference.steps=2",
    "gan": "network=gan_mlp model.generator.hidden=[16] model.discriminator.hidden=[16] model.latent_dim=4",
    "infogan": "network=dcgan model.generator.width=4 model.discriminator.width=4 model.latent_dim=4 "
    "trainer.average=null",  # validation uses the trained generator, whose batch statistics it must not change
}
DENSITY = [name for name, words in FAMILIES.items() if words.startswith(LIKELIHOOD)]
BESIDE = {
    "nothing": "",
    "records": "trainer.log_every=1",
    "no_records": "trainer.log_every=1000",
    "pictures": "evaluation.pictures=1",
    "checkpoints": "trainer.checkpoint_seconds=0",
    "bar": "trainer.log_every=1",
}
"""Settings that must not change any result; `bar`: standard error is a terminal, with a progress bar."""
families = pytest.mark.parametrize("family", FAMILIES)


def run(folder: Path, family: str, *overrides: str) -> dict[str, Any]:
    words = [*SHORT.split(), *FAMILIES[family].split(), *overrides]
    with hydra.initialize_config_dir(str(builtin_config_dir()), version_base="1.3"):
        settings = to_settings(hydra.compose("config", [f"model={family}", *words]))
    return Experiment(settings, folder, list(overrides)).run()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            run(made[family], family)
        return made[family]

    return of


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def trained(folder: Path) -> dict[str, Any]:
    return {part: load(folder)[part] for part in ("objective", "optimisers")}


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "result.json").read_text())["metrics"]


def assert_same_results(one: Path, other: Path) -> None:
    assert_same_bits(trained(one), trained(other))
    assert_same_bits(load(one, "best")["objective"], load(other, "best")["objective"])
    assert metrics(one) == metrics(other)


@families
def test_records_pictures_checkpoints_and_a_bar_at_once(
    family: str, base: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = base(family)  # without a terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run(tmp_path, family, *{word for words in BESIDE.values() for word in words.split() if "1000" not in word})
    assert_same_results(tmp_path, expected)


@pytest.mark.slow
@families
@pytest.mark.parametrize("beside", BESIDE)
def test_each_of_them_alone(
    family: str, beside: str, base: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = base(family)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: beside == "bar", raising=False)
    run(tmp_path, family, *BESIDE[beside].split())
    assert_same_results(tmp_path, expected)


@families
def test_how_often_is_validated_changes_what_is_selected_at_most(
    family: str, base: Callable[[str], Path], tmp_path: Path
) -> None:
    run(tmp_path, family, "evaluation.every=3")
    assert_same_bits(trained(tmp_path), trained(base(family)))


@pytest.mark.parametrize("family", DENSITY)
def test_the_chunk_of_an_evaluation_changes_rounding_alone(
    family: str, base: Callable[[str], Path], tmp_path: Path
) -> None:
    run(tmp_path, family, "evaluation.chunk=70")  # two images at a time
    assert_same_bits(trained(tmp_path), trained(base(family)))
    chunked, expected = metrics(tmp_path), metrics(base(family))
    assert chunked == pytest.approx(expected, rel=1e-5, abs=5e-5)  # some are differences of nats
    assert chunked["val/elbo"] == expected["val/elbo"]  # a validation has no chunks


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vlae", "infogan"])
def test_another_process_with_another_order_of_hashes(
    family: str, base: Callable[[str], Path], env: dict[str, str], tmp_path: Path
) -> None:
    words = [f"model={family}", *SHORT.split(), *FAMILIES[family].split()]
    done = shell([*words, f"output_dir={tmp_path / 'run'}"], tmp_path, env | {"PYTHONHASHSEED": "1"})
    assert done.returncode == 0, done.stderr
    assert_same_results(tmp_path / "run", base(family))


@pytest.mark.slow
@families
def test_two_threads_repeat_themselves_and_differ_from_one_by_rounding(
    family: str, base: Callable[[str], Path], tmp_path: Path
) -> None:
    """Reductions are split among threads: their number must be the same for the same bits, and is recorded."""
    expected = base(family)
    assert json.loads((expected / "result.json").read_text())["environment"]["threads"] == 1
    with threads(2):
        records = [run(tmp_path / name, family) for name in ("first", "second")]
    assert [record["environment"]["threads"] for record in records] == [2, 2]
    assert_same_results(tmp_path / "first", tmp_path / "second")
    one, two = (flat(load(folder)["objective"]) for folder in (expected, tmp_path / "first"))
    for name, value in one.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            torch.testing.assert_close(two[name], value, rtol=1e-2, atol=1e-3)  # 14 steps of Adam at 0.001
    assert all(math.isfinite(v) for k, v in metrics(tmp_path / "first").items() if v is not None)


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_another_seed_is_another_run(family: str, base: Callable[[str], Path], tmp_path: Path) -> None:
    """A sanity check: what the tests above compare depends on the seed."""
    run(tmp_path, family, "seed=1")
    one, other = (flat(load(folder)["objective"]) for folder in (tmp_path, base(family)))
    assert any(isinstance(v, Tensor) and not torch.equal(v, other[k]) for k, v in one.items())
