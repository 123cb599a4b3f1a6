"""`vaerun trainer.processes=2`: one run directory, one loss curve, one outcome."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.runs.commands import FAST_AMIS

WORDS = [
    "model=vae", "trainer.epochs=100", "trainer.log_every=5", "evaluation.images=20", "evaluation.samples=10",
    "evaluation.pictures=0", "trainer.device=cpu", *FAST_AMIS,
]  # fmt: skip


def start(env: dict[str, str], *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vaerun.cli.main", *WORDS, *words]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(env: dict[str, str], *words: str) -> tuple[int, str, str]:
    process = start(env, *words)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def curve(folder: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    by_step: dict[int, dict[str, float]] = {}
    for line in lines:
        # Rounding can change the decisions of adaptive importance sampling, and so its samples.
        numbers = {k: v for k, v in line.items() if "/" in k and "amis" not in k and "gap_posterior" not in k}
        by_step.setdefault(line.pop("step"), {}).update(numbers)
    return by_step


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


def members(folder: Path) -> list[int]:
    """Process ids of this run's processes, by rank."""
    pids = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder / ".job.json").encode() in words and words[-2].isdigit():
            pids[int(words[-2])] = int(path.parent.name)
    return [pids[rank] for rank in sorted(pids)]


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait until training has saved a checkpoint."""
    deadline = time.monotonic() + 200
    while not (folder / "checkpoints" / "last.pt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(env: dict[str, str], tmp_path: Path) -> None:
    code, out, err = run(env, "trainer.max_steps=20", "trainer.processes=2", f"output_dir={tmp_path / 'two'}")
    assert code == 0, err
    code, single, err = run(env, "trainer.max_steps=20", f"output_dir={tmp_path / 'one'}")
    assert code == 0, err
    assert len(out.splitlines()) == len(single.splitlines())  # one table, not two
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert one.keys() == two.keys() == {5, 10, 11, 15, 20}  # 11: validation
    for step, values in one.items():
        assert values == pytest.approx(two[step], rel=2e-4, abs=1e-4)
    parallel = record(tmp_path / "two")
    assert parallel["status"] == "ok"
    assert (
        parallel["fingerprint"] == record(tmp_path / "one")["fingerprint"]
    )  # the number of processes does not identify a run
    assert parallel["metrics"]["val/elbo"] == pytest.approx(record(tmp_path / "one")["metrics"]["val/elbo"], abs=1e-3)
    assert (tmp_path / "two" / "run.log").read_text().count("start:") == 1
    assert len(list((tmp_path / "two").glob("events.out.tfevents.*"))) == 1


def test_what_needs_the_whole_batch_is_refused_in_one_line(
    here: Any, command_environment: None, tmp_path: Path
) -> None:
    code, out, err = here("model=dcgan", "trainer.processes=2", f"output_dir={tmp_path / 'run'}")
    assert (code, out) == (2, "")
    assert "batch normalisation" in err
    assert "trainer.processes=1" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_signal_saves_and_one_process_goes_on(env: dict[str, str], tmp_path: Path) -> None:
    words = ["trainer.max_steps=400", "trainer.checkpoint_seconds=0", f"output_dir={tmp_path / 'run'}"]
    process = start(env, *words, "trainer.processes=2")
    wait_for_checkpoint(tmp_path / "run", process)
    process.send_signal(signal.SIGTERM)
    _out, err = process.communicate(timeout=200)
    assert process.returncode == 75, err
    assert record(tmp_path / "run")["status"] == "interrupted"
    assert "Traceback" not in err
    assert err.count("stopped by SIGTERM") == 1
    code, _, err = run(env, *words)
    assert code == 0, err
    code, _, err = run(env, *words[:2], f"output_dir={tmp_path / 'never'}")
    assert code == 0, err
    assert curve(tmp_path / "run").keys() == curve(tmp_path / "never").keys()
    assert curve(tmp_path / "run")[20] == pytest.approx(curve(tmp_path / "never")[20], rel=1e-3, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_and_it_goes_on(env: dict[str, str], tmp_path: Path, rank: int) -> None:
    folder = tmp_path / "run"
    words = ["trainer.max_steps=400", "trainer.checkpoint_seconds=0", "trainer.processes=2", f"output_dir={folder}"]
    process = start(env, *words)
    wait_for_checkpoint(folder, process)
    pids = members(folder)
    assert len(pids) == 2
    os.kill(pids[rank], signal.SIGKILL)
    _out, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert f"process {rank} of 2 was killed by SIGKILL" in err
    assert members(folder) == []
    assert record(folder)["status"] == "failed"
    code, _, err = run(env, *words)
    assert code == 0, err
    assert record(folder)["status"] == "ok"


@pytest.mark.slow
def test_inside_a_sweep(env: dict[str, str], tmp_path: Path) -> None:
    words = ["-m", "trainer.processes=2", "trainer.max_steps=20", "seed=0,1", f"output_dir={tmp_path}"]
    code, _out, err = run(env, *words, "trainer.learning_rate=0.001,1e30")
    assert code == 1
    assert "2 of 4 jobs done" in err
    jobs = [json.loads(p.read_text()) for p in tmp_path.glob("*/*/*/result.json")]
    assert sorted(r["status"] for r in jobs) == ["failed", "failed", "ok", "ok"]
    assert all("is not finite" in r["error"] for r in jobs if r["status"] == "failed")
