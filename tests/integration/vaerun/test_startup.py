"""Commands import slow modules only when they are needed. Modules are listed, not timed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HEAVY = {"torch", "torchvision", "tensorboard", "matplotlib", "sklearn", "scipy", "zuko"}
LATER = {"torchvision", "tensorboard", "matplotlib", "sklearn", "scipy"}
"""Needed after the first steps at the earliest, for pictures and records."""

COMMAND = """
import atexit, importlib, json, sys
atexit.register(lambda: print("\\n" + json.dumps(sorted(sys.modules))))
main = importlib.import_module(f"vaerun.cli.{sys.argv[1]}").main
sys.argv = [f"vaerun-{sys.argv[1]}", *sys.argv[2:]]
sys.exit(main())
"""
UNTIL_FIRST_STEP = """
import json, os, sys
import vaerun.training.step as step
from vaerun.cli.main import main
original = step.update

def update(*arguments, **options):
    original(*arguments, **options)
    print("\\n" + json.dumps(sorted(sys.modules)), flush=True)
    os._exit(0)

step.update = update
sys.argv = ["vaerun", *sys.argv[1:]]
main()
"""


def run(code: str, words: list[str], cwd: Path, env: dict[str, str]) -> tuple[set[str], subprocess.CompletedProcess]:
    call = [sys.executable, "-c", code, *words]
    done = subprocess.run(call, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1])), done


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("main --help", 0),
        ("main --version", 0),
        ("main --cfg job", 0),
        ("main model.nonsense=1", 2),
        ("main model=vea", 2),
        ("main trainer.epochs=x", 2),
        ("main trainer.epochs=0", 2),
        ("data --help", 0),
        ("data cifar", 2),
        ("table --help", 0),
        ("table nowhere", 2),
        ("evaluate --help", 0),
        ("evaluate --nonsense", 2),
        ("bench --help", 0),
        ("bench nonsense", 2),
    ],
)
def test_help_and_bad_input_are_answered_without_torch(
    words: str, code: int, tmp_path: Path, env: dict[str, str]
) -> None:
    modules, done = run(COMMAND, words.split(), tmp_path, env)
    assert done.returncode == code, done.stderr
    assert modules & HEAVY == set()


@pytest.mark.parametrize("model", ["vae", "vlae"])
def test_the_first_step_waits_for_nothing_that_comes_later(model: str, tmp_path: Path, env: dict[str, str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", train_images=images)
    words = [
        f"model={model}",
        "data=npz",
        f"data.path={tmp_path / 'images.npz'}",
        "trainer.device=cpu",
        "trainer.batch_size=8",
    ]
    modules, _ = run(UNTIL_FIRST_STEP, words, tmp_path, env)
    assert "torch" in modules
    assert modules & LATER == set()
