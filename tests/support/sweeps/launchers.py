"""Sweeps as a user starts them, for tests of the optional launchers and sweepers: processes, signals, results."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.runs.commands import FAST_AMIS

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-c", "import sys; sys.argv[0] = 'vaerun'; from vaerun.cli.main import main; main()"]
SHORT = ["trainer.max_steps=20", "evaluation.images=20", "evaluation.samples=10", "evaluation.pictures=0"]
SHORT += FAST_AMIS
PATIENCE = 600.0  # seconds; a busy machine is no failure


def needs(package: str, extra: str) -> None:
    """Skip the module if a plugin of Hydra is not installed."""
    if find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{package}") is None:
        pytest.skip(f"{package} is not installed: pip install 'vaerun[{extra}]'", allow_module_level=True)


def node(script: str, *words: object, env: Mapping[str, str] | None = None) -> None:
    """Run a script that starts or ends a cluster; skip if it reports that this machine cannot."""
    command = ["bash", str(ROOT / "scripts" / script), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=env)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr + done.stdout


def start(
    words: list[str], log: Path, env: Mapping[str, str], before: list[str] | None = None
) -> subprocess.Popen[Any]:
    """`vaerun` with these words, in a session of its own, printing to `log`."""
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [*(before or []), *COMMAND, *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=dict(env),
            cwd=log.parent,
            start_new_session=True,
        )
    atexit.register(end, process)  # even if the test fails
    return process


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a process and its descendants."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(words: list[str], log: Path, env: Mapping[str, str], before: list[str] | None = None) -> tuple[int, str]:
    """Exit code and output of `vaerun`."""
    process = start(words, log, env, before)
    try:
        code = process.wait(PATIENCE)
    finally:
        end(process)
    return code, log.read_text()


def eventually(probe: Callable[[], Any], what: str, process: subprocess.Popen[Any] | None = None) -> Any:
    """Poll until `probe` returns something true, and return it; `process` should be running until then."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        over = process is not None and process.poll() is not None
        value = probe()
        if value:
            return value
        assert not over, f"ended before {what}"
        time.sleep(0.05)
    raise AssertionError(f"waited for {what}")


def record(folder: Path) -> dict[str, Any]:
    """A run's result.json; empty if there is none yet."""
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    except FileNotFoundError:
        return {}
    return result


def jobs(sweep: Path) -> dict[Path, list[str]]:
    """All jobs ever planned in this folder: run directory and overrides."""
    try:
        plan = json.loads((sweep / "sweep.json").read_text())
    except FileNotFoundError:
        return {}
    return {sweep / entry["folder"]: entry["words"] for entry in plan["jobs"]}


def job_with(sweep: Path, word: str, process: subprocess.Popen[Any] | None = None) -> Path:
    """Run directory of the job with this override, once it is planned."""
    folder: Path = eventually(
        lambda: next((f for f, words in jobs(sweep).items() if word in words), None), word, process
    )
    return folder


def worker(folder: Path) -> int | None:
    """The process that runs this job, if any."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"vaerun.launch.worker" in words and str(folder / ".job.json").encode() in words:
            return int(entry.name)
    return None


def parent(pid: int) -> int:
    """Parent of a process."""
    return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])


def training(folder: Path) -> int | None:
    """The process of a run that has started training, if any."""
    return worker(folder) if record(folder).get("status") == "running" else None


def has_checkpoint(folder: Path) -> bool:
    """Whether the run has saved a checkpoint."""
    return (folder / "checkpoints" / "last.pt").exists()


def six_jobs(sweep: Path, launch: list[str], env: Mapping[str, str], before: list[str] | None = None) -> None:
    """One job diverges, one is killed: four finish, both are listed, and the same command reruns only these two."""
    rates = ["0.001", "0.002", "0.003", "0.004", "0.005", "1e+30"]
    words = ["-m", *launch, f"output_dir={sweep}", *SHORT, "trainer.max_steps=200", "model=vae"]
    words += [f"trainer.learning_rate={','.join(rates)}"]
    process = start(words, sweep.parent / "first.log", env, before)
    killed = job_with(sweep, "trainer.learning_rate=0.003", process)
    os.kill(eventually(lambda: training(killed), "the job to be killed", process), signal.SIGKILL)
    assert process.wait(PATIENCE) == 1
    output = (sweep.parent / "first.log").read_text()
    diverged = job_with(sweep, "trainer.learning_rate=1e+30")
    good = sorted(set(jobs(sweep)) - {killed, diverged})
    assert len(good) == 4
    assert [record(folder)["status"] for folder in good] == ["ok"] * 4, output
    assert "not finite" in record(diverged)["error"]
    assert "SIGKILL" in record(killed)["error"]
    end = output[output.index("4 of 6 jobs done") :]
    assert "2 failed" in end
    assert str(killed) in end
    assert str(diverged) in end
    assert not any(str(folder) in end[end.index("2 failed") :] for folder in good)

    before_again = {folder: (folder / "result.json").stat().st_mtime_ns for folder in good}
    code, output = run(words, sweep.parent / "again.log", env, before)
    assert code == 1
    assert "5 of 6 jobs done" in output
    assert "1 failed" in output
    assert record(killed)["status"] == "ok"
    assert record(diverged)["status"] == "failed"
    assert {folder: (folder / "result.json").stat().st_mtime_ns for folder in good} == before_again
