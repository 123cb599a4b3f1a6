"""Runs killed at any moment resume and end with the bits of an uninterrupted run (support/robustness/killing.py)."""

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
    """Run the tasks, assert that no run was lost and no bit changed, and return the outcomes."""
    job, outcome = folder / "job.json", folder / "outcome.json"
    job.write_text(json.dumps({"tasks": tasks, "folder": str(folder / "runs"), "outcome": str(outcome)}))
    command = [sys.executable, "-m", "support.robustness.killing", str(job)]
    env = importing_support(env)
    process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    assert process.returncode == 0, process.stderr
    outcomes = json.loads(outcome.read_text())
    for name, task in outcomes.items():
        kills = task["kills"]
        print(f"{name}: {sum(kills.values())} kills of {task['runs']} runs, {kills}, after {task['steps']}")
        assert task["lost"] == [], name
        assert task["different"] == [], name
    return outcomes


def assert_spread(outcomes: dict[str, Any], minimum: int) -> None:
    """Assert enough kills, of every kind, most of them after the first logged step."""
    steps = [step for task in outcomes.values() for step in task["steps"]]
    assert len(steps) >= minimum
    assert sum(step > 0 for step in steps) > len(steps) / 2
    assert {kind for task in outcomes.values() for kind in task["kills"]} == {"time", *KINDS}


@pytest.mark.slow
def test_twenty_kills_a_full_disk_and_no_memory(tmp_path: Path, env: dict[str, str]) -> None:
    tasks: dict[str, Any] = {family: {"family": family, "kills": 4, "seed": i} for i, family in enumerate(FAMILIES)}
    tasks["disk"] = {"family": "vae", "words": SHORT, "kills": 8, "seed": 3, "kinds": ["full"]}
    tasks["memory"] = {"family": "vae", "words": SHORT, "kills": 12, "seed": 5, "kinds": ["memory"]}
    outcomes = kill(tmp_path, tasks, env, 600)
    disk, memory = outcomes.pop("disk"), outcomes.pop("memory")
    assert_spread(outcomes, 20)
    assert disk["kills"] == {"full": 8}
    assert memory["kills"] == {"memory": 12}
    assert disk["unclear"] == memory["unclear"] == []  # each time one line that says so


@pytest.mark.nightly
def test_two_hundred_kills(tmp_path: Path, env: dict[str, str]) -> None:
    kills, seed = int(os.environ.get("VAERUN_KILLS", "40")), int(os.environ.get("VAERUN_KILL_SEED", "100"))
    tasks = {family: {"family": family, "kills": kills, "seed": seed + i} for i, family in enumerate(FAMILIES)}
    assert_spread(kill(tmp_path, tasks, env, 7200), 5 * kills)


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["vae", "gan"])
def test_a_kill_at_every_place(family: str, tmp_path: Path, env: dict[str, str]) -> None:
    (task,) = kill(tmp_path, {family: {"family": family, "words": SHORT}}, env, 7200).values()
    assert task["kills"] == {kind: task["counts"][kind] for kind in KINDS}


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["vae", "gan"])
def test_a_full_disk_at_every_place(family: str, tmp_path: Path, env: dict[str, str]) -> None:
    (task,) = kill(tmp_path, {family: {"family": family, "words": SHORT, "kinds": ["full"]}}, env, 7200).values()
    assert task["kills"] == {"full": task["counts"]["full"]}
    assert task["unclear"] == []
