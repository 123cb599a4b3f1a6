"""How far it is from the command to `optimizer.step()`: what CONTRIBUTING says of it, counted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runs.commands import TINY, importing_support

import vaerun

ROOT = Path(vaerun.__file__).parent
SPINE = ["cli/main.py", "run/experiment.py", "training/trainer.py", "training/step.py"]
"""The files on the stack; cli/compose.py, between the first two, has handed over to Hydra and returned."""
MAXIMUM_FRAMES, MAXIMUM_FILES, MAXIMUM_LINES = 8, 16, 3000


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> dict[str, Any]:
    """Stack and files of `vaerun model=vlae data=cifar10`, on images made here."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    arrays = {
        f"{part}_images": generator.integers(0, 256, (images, 3, 32, 32), dtype=np.uint8)
        for part, images in (("train", 200), ("test", 20))
    }
    np.savez(folder / "cifar10.npz", **arrays)
    words = ["model=vlae", "data=cifar10", "data.validation=50", *TINY, f"output_dir={folder / 'run'}"]
    command = [sys.executable, "-m", "support.runs.spine", *words]
    env = importing_support(env) | {"VAERUN_DATA": str(folder)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_stack_is_short(way: dict[str, Any]) -> None:
    files = [frame.partition(":")[0] for frame in way["stack"]]
    assert list(dict.fromkeys(files)) == SPINE
    assert len(files) <= MAXIMUM_FRAMES, way["stack"]


def test_few_files_are_on_the_way(way: dict[str, Any]) -> None:
    assert len(way["files"]) <= MAXIMUM_FILES, way["files"]
    lines = sum(len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in way["files"])
    assert lines <= MAXIMUM_LINES


def test_contributing_lists_them(way: dict[str, Any]) -> None:
    text = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("\n## How a run happens\n")[2].partition("\n## ")[0]
    assert section
    assert sorted(set(re.findall(r"`vaerun/([\w/]+\.py)`", section))) == way["files"]
