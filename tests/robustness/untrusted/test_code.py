"""An untrusted run directory names parts of models: only vaerun's own and those of trusted packages are called."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.robustness.untrusted import assert_harmless, assert_rejected, edit_config, open_all, sign

import vaerun
from vaerun.config import plugins
from vaerun.errors import InputError

TARGETS = [
    "os.system", "posix.system", "builtins.eval", "builtins.open", "subprocess.Popen", "importlib.import_module",
    "torch.load", "pickle.loads", "vaerun.data.sources.Path", "vaerun.data.sources.os.system", "vaerun.data.sources.os",
    "vaerun.data.decoding.warnings.warn", "vaerun.config.plugins.trust",
    "vaerun.config.plugins.importlib.import_module", "vaerun.launch.worker.main", "vaerun.cli.main.main",
    "vaerun.storage.json_files.write_json", "vaerun.data.sources._mnist_like",
    "vaerun.data.sources.__loader__", "vaerun.data.sources.reason", "vaerunevil.main", "vaerun", "", "vaerun.",
    ".vaerun.nets", "vaerun..nets", "vaerun.nets.mlp.nn.Sequential", "vaerun.training.trainer.train", "os",
    "\uff4f\uff53.system",
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_only_parts_of_the_right_kind_are_made(stranger: Path, capsys: Any, cache: Path, target: str) -> None:
    for change in (
        lambda plain: plain["data"]["source"].update(_target_=target, command="touch pwned"),
        lambda plain: plain["model"]["inference"].update(_target_=target),
        lambda plain: plain["estimator"]["function"].update(_target_=target),
    ):
        before = (stranger / ".hydra" / "config.yaml").read_text()
        edit_config(stranger, change)
        opened = open_all(stranger, capsys, ("load_run",))
        assert opened.codes["load_run"] == 2
        assert_harmless(opened, stranger, cache)
        (stranger / ".hydra" / "config.yaml").write_text(before)


PARTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unhashable": (lambda p: p["model"]["encoder"].update(activation=["relu"]), "unknown activation"),
    "a decoder as encoder": (
        lambda p: p["model"]["encoder"].update(_target_="vaerun.nets.MLPDecoder"),
        "model.encoder (vaerun.nets.MLPDecoder) cannot be created from its options",
    ),
    "a layer as encoder": (
        lambda p: p["model"].update(encoder={"_target_": "vaerun.nets.init.linear"}),
        "model.encoder (vaerun.nets.init.linear) cannot be created from its options",
    ),
    "a function as encoder": (
        lambda p: p["model"].update(encoder={"_target_": "vaerun.nets.init.initialise"}),
        "model.encoder (vaerun.nets.init.initialise) cannot be created from its options",
    ),
    "a number as encoder": (
        lambda p: p["model"].update(encoder={"_target_": "vaerun.nets.init.check_integer", "minimum": 0}),
        "model.inference (vaerun.inference.Amortised) cannot be created from its options",
    ),
    "a name without end": (
        lambda p: p["model"]["encoder"].update(_target_="vaerun." + "a." * 400_000),
        "too many for a name",
    ),
    "a name of a part too many": (
        lambda p: p["estimator"]["function"].update(_target_="vaerun." + "a" * 200),
        "too many for a name",
    ),
    "a warm-up without end": (lambda p: p["estimator"].update(kl_warmup_epochs=1e308), "estimator.kl_warmup_epochs"),
    "a warm-up of 2^70 steps": (
        lambda p: p["estimator"].update(kl_warmup_epochs=2.0**70),
        "estimator.kl_warmup_epochs",
    ),
    "a number as a key": (lambda p: p["model"]["encoder"].update({1: 1}), "model.encoder"),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_model_that_cannot_be_made(stranger: Path, capsys: Any, cache: Path, name: str) -> None:
    change, message = PARTS[name]
    edit_config(stranger, change)
    text = assert_rejected(stranger, capsys, cache, message)
    assert max(map(len, text.splitlines())) < 2000


def test_a_name_in_a_trusted_package_may_be_an_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is where an object is defined: a trusted package also exposes what it imported."""
    (tmp_path / "mine_of_the_user.py").write_text(
        "from os import system\nfrom subprocess import Popen\nfrom functools import partial\n"
        "run = partial(system)\ndef own(x=0): return x\n_private, number = own, 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="outside vaerun and the trusted packages"):
        plugins.resolve("mine_of_the_user.own", "vaerun.nets")
    monkeypatch.setattr(plugins, "_trusted", set())
    plugins.trust("mine_of_the_user")
    assert plugins.resolve("mine_of_the_user.own", "vaerun.nets")() == 0
    with pytest.raises(InputError, match="has no public attribute '_private'"):
        plugins.resolve("mine_of_the_user._private", "vaerun.nets")
    for alias in ("system", "Popen", "run", "partial", "number"):
        with pytest.raises(InputError, match="not a class or function of a trusted package"):
            plugins.resolve(f"mine_of_the_user.{alias}", "vaerun.nets")


class Unhomely:
    """A member of a trusted package that is not callable."""

    __module__ = "vaerun.nets.mlp"


def test_what_cannot_be_called_is_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    from vaerun import nets

    monkeypatch.setattr(nets, "thing", Unhomely(), raising=False)
    with pytest.raises(InputError, match="not a class or function"):
        plugins.resolve("vaerun.nets.thing", "vaerun.nets")


def test_a_module_whose_name_begins_alike_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """vaerun.netsX is not vaerun.nets."""
    from vaerun import nets

    def part() -> None: ...

    monkeypatch.setattr(nets, "part", part, raising=False)
    for home, kind in (("vaerun.netsX", "other"), ("vaerun.nets_of.mlp", "other"), ("vaerun.nets.new", "right")):
        part.__module__ = home
        if kind == "right":
            assert plugins.resolve("vaerun.nets.part", "vaerun.nets") is part
        else:
            with pytest.raises(InputError, match="cannot be used here"):
                plugins.resolve("vaerun.nets.part", "vaerun.nets")


def test_a_private_name_is_none_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    from vaerun import nets

    monkeypatch.setattr(nets, "_Part", nets.MLPEncoder, raising=False)
    with pytest.raises(InputError, match="has no public attribute '_Part'"):
        plugins.resolve("vaerun.nets._Part", "vaerun.nets")


def test_a_directory_trusts_nobody(stranger: Path, capsys: Any, cache: Path) -> None:
    """Neither a package next to the run, nor its files, nor the working directory can extend the trust."""
    for name in ("evil", "torch", "yaml", "vaerun_plugins", "sitecustomize"):
        (stranger / f"{name}.py").write_text("open('pwned', 'w')\n")
    (stranger / "evil.py").write_text("open('pwned', 'w')\nclass Net: pass\n")
    plain = yaml.safe_load((stranger / ".hydra" / "config.yaml").read_text())
    plain["model"]["inference"] = {"_target_": "evil.Net"}
    (stranger / ".hydra" / "config.yaml").write_text(yaml.safe_dump(plain))
    sign(stranger, plain)
    (stranger / ".env").write_text("VAERUN_PLUGINS=evil\n")
    (stranger / ".hydra" / "hydra.yaml").write_text("hydra: {job: {env_set: {VAERUN_PLUGINS: evil}}}\n")
    script = str(Path(sys.executable).with_name("vaerun-eval"))
    done = subprocess.run(
        [script, "run=."], cwd=stranger, capture_output=True, text=True, timeout=120, check=False, env=own_environment()
    )
    assert done.returncode == 2
    assert "outside vaerun and the trusted packages" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (stranger / "pwned").exists()


def own_environment() -> dict[str, str]:
    root = str(Path(vaerun.__file__).parents[1])
    return {k: v for k, v in os.environ.items() if k != "VAERUN_PLUGINS"} | {"PYTHONPATH": root}


def test_processes_of_a_sweep_import_nothing_from_the_working_folder(tmp_path: Path) -> None:
    from vaerun.launch.process import worker_command, worker_environment

    for name in ("torch", "json", "vaerun"):
        (tmp_path / f"{name}.py").write_text("open('pwned', 'w')\n")
    subprocess.run(
        worker_command(tmp_path / "job.json"), cwd=tmp_path, env=worker_environment(), capture_output=True,
        stdin=subprocess.DEVNULL, timeout=60, check=False,
    )  # fmt: skip
    assert not (tmp_path / "pwned").exists()


def test_another_functions_images_are_no_mnist(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cache is shared: a configuration must not place its own images there under a known name."""
    from vaerun.data import sources
    from vaerun.data.arrays import Arrays
    from vaerun.data.cache import load_arrays

    def images(value: int) -> Callable[..., Arrays]:
        array = np.full((4, 1, 8, 8), value, dtype=np.uint8)
        return lambda scratch: Arrays(array, None, array, None, "official")

    monkeypatch.setenv("VAERUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VAERUN_DATA", raising=False)  # where the real one may lie
    monkeypatch.setitem(sources.BUILT_IN, "mnist", images(3))
    assert load_arrays("mnist", images(2)).train_images.max() == 2
    assert load_arrays("mnist", sources.BUILT_IN["mnist"]).train_images.max() == 3
