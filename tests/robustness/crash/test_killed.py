"""Runs killed at any moment go on, and end with the bits of a run that never was (support/robustness/killing.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.robustness.killing import FAMILIES, KINDS
from support.runs.commands import importing_support

SHORT = ["trainer.max_steps=4"]  # an epoch: every place in it is killed at


def kill(folder: Path, tasks: dict[str, Any], env: dict[str, str], timeout: float) -> dict[str, Any]:
    """The outcome of each task, none of which lost a run or changed a bit."""
    job, outcome = folder / "job.json", folder / "outcome.json"
    job.write_text(json.dumps({"tasks": tasks, "folder": str(folder / "runs"), "outcome": str(outcome)}))
    command = [sys.executable, "-m", "support.robustness.killing", str(job)]
    env = importing_support(env)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(outcome.read_text())
    for name, one in found.items():
        print(f"{name}: {sum(one['kills'].values())} kills of {one['runs']} runs, {one['kills']}, after {one['steps']}")
        assert one["lost"] == [], name
        assert one["different"] == [], name
    return found


def assert_spread(found: dict[str, Any], least: int) -> None:
    """Enough kills, in each of the ways, and most while there is something to lose."""
    steps = [step for one in found.values() for step in one["steps"]]
    assert len(steps) >= least
    assert sum(step > 0 for step in steps) > len(steps) / 2
    assert {kind for one in found.values() for kind in one["kills"]} == {"time", *KINDS}


@pytest.mark.slow
def test_twenty_kills_and_a_full_disk(tmp_path: Path, env: dict[str, str]) -> None:
    tasks: dict[str, Any] = {family: {"family": family, "kills": 4, "seed": i} for i, family in enumerate(FAMILIES)}
    tasks["disk"] = {"family": "vae", "words": SHORT, "kills": 8, "seed": 3, "kinds": ["full"]}
    found = kill(tmp_path, tasks, env, 600)
    disk = found.pop("disk")
    assert_spread(found, 20)
    assert disk["kills"] == {"full": 8}
    assert disk["unclear"] == []  # each time one line that says so


@pytest.mark.nightly
def test_two_hundred_kills(tmp_path: Path, env: dict[str, str]) -> None:
    kills, seed = int(os.environ.get("VAERUN_KILLS", "40")), int(os.environ.get("VAERUN_KILL_SEED", "100"))
    tasks = {family: {"family": family, "kills": kills, "seed": seed + i} for i, family in enumerate(FAMILIES)}
    assert_spread(kill(tmp_path, tasks, env, 7200), 5 * kills)


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["vae", "gan"])
def test_a_kill_at_every_place(family: str, tmp_path: Path, env: dict[str, str]) -> None:
    (one,) = kill(tmp_path, {family: {"family": family, "words": SHORT}}, env, 7200).values()
    assert one["kills"] == {kind: one["counts"][kind] for kind in KINDS}


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["vae", "gan"])
def test_a_full_disk_at_every_place(family: str, tmp_path: Path, env: dict[str, str]) -> None:
    (one,) = kill(tmp_path, {family: {"family": family, "words": SHORT, "kinds": ["full"]}}, env, 7200).values()
    assert one["kills"] == {"full": one["counts"]["full"]}
    assert one["unclear"] == []
