"""Shared by tests of runs and of commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

COMMAND = str(Path(sys.executable).with_name("vaerun"))
FAST_AMIS = """evaluation.amis.samples=20 evaluation.amis.round_samples=20 evaluation.amis.starts=1
evaluation.amis.max_starts=2 evaluation.amis.max_rounds=3 evaluation.amis.simulated=2""".split()  # noqa: SIM905
TINY = """model.encoder.hidden=[8] model.decoder.hidden=[8] model.latent_dim=2 trainer.device=cpu evaluation.samples=20
evaluation.images=20""".split()  # noqa: SIM905
TINY += FAST_AMIS
SHORT = [*TINY, "trainer.max_steps=25", "trainer.log_every=5"]
LONG = ["model=vae", *TINY, "trainer.max_steps=400", "trainer.log_every=10", "trainer.checkpoint_seconds=0.05"]
LONG += ["trainer.epochs=100", "evaluation.every=5", "evaluation.pictures=0"]


def load(folder: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.pt", weights_only=True)


def lasting(folder: Path, name: str = "last") -> dict[str, Any]:
    """The contents of a checkpoint, without times and the file names that contain them: no two runs share those."""
    state = load(folder, name)
    for timing in ("seconds", "timed_seconds", "timed_steps"):
        state.get("progress", {}).pop(timing, None)
    (state.get("log") or {}).pop("events", None)
    return state


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(state, dict | list):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {k: v for key, item in items for k, v in flat(item, f"{prefix}/{key}").items()}
    return {prefix: state}


def assert_same_bits(one: Any, other: Any) -> None:
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key], key


def shell(words: list[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"]
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensorboard(folder: Path) -> Any:
    """The events, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def assert_same_scalars(events: Any, lines: list[dict[str, Any]]) -> None:
    for tag in ("train/elbo", "train/kl", "train/reconstruction", "val/elbo", "test/elbo", "test/log_likelihood"):
        expected = [(line["step"], line[tag]) for line in lines if tag in line]
        actual = [(e.step, e.value) for e in events.Scalars(tag)]
        assert [s for s, _ in actual] == [s for s, _ in expected] != []
        np.testing.assert_allclose([v for _, v in actual], [v for _, v in expected], rtol=1e-6)


def importing_support(env: dict[str, str]) -> dict[str, str]:
    """The environment, with `support` importable as in the tests."""
    paths = [str(Path(__file__).parents[2]), *env.get("PYTHONPATH", "").split(os.pathsep)]
    return env | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
