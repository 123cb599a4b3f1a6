"""Sweeps of real runs: killed, stopped and resumed, identical to the bit to an undisturbed sweep."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support.runs.commands import COMMAND, LONG, SHORT, assert_same_bits, load, state
from support.sweeps.sweeping import alive, failures, holding, printed_command, settings, wait_until

from vaerun.errors import EXIT_BUSY
from vaerun.launch.job import Job
from vaerun.launch.process import JobProcess

pytestmark = pytest.mark.usefixtures("command_environment")

DATA = os.environ.get("VAERUN_DATA")
Here = Callable[..., tuple[int, str, str]]
ENOUGH = 120.0  # seconds, on a busy machine


@contextmanager
def launched(words: list[str], cwd: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """`vaerun` with these arguments, killed at the end if it still runs."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([COMMAND, *words], cwd=cwd, env=env, text=True, **pipes)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=ENOUGH)
    return process.returncode, out, err


def process_of(folder: Path) -> int | None:
    """The process that runs the job of this folder, if any."""
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if entry.name.isdigit() and os.fsencode(folder / ".job.json") in words and alive(int(entry.name)):
            return int(entry.name)
    return None


def trains(folder: Path) -> Callable[[], bool]:
    """A function that tells whether the run in this folder has advanced since this call."""
    saved = folder / "checkpoints" / "last.pt"
    before = saved.stat().st_mtime_ns if saved.exists() else 0
    starts = starts_of(folder)

    def has_advanced() -> bool:
        return starts_of(folder) > starts and saved.exists() and saved.stat().st_mtime_ns > before

    return has_advanced


def starts_of(folder: Path) -> int:
    log = folder / "run.log"
    return log.read_text().count(" INFO start: ") if log.exists() else 0


def status(folder: Path) -> str:
    return str(json.loads((folder / "result.json").read_text())["status"])


def assert_same_run(one: Path, other: Path) -> None:
    first, second = (json.loads((f / "result.json").read_text()) for f in (one, other))
    assert first["status"] == second["status"] == "ok"
    assert first["metrics"] == second["metrics"]
    assert first["fingerprint"] == second["fingerprint"]
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    for name in ("best", "last"):
        saved = [load(f, name) for f in (one, other)]
        for checkpoint in saved:
            for key in ("progress", "log"):  # times, and positions in files that contain times
                checkpoint.pop(key, None)
        assert_same_bits(*saved)


def test_a_sweep(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command to the table; re-running it, only the table."""
    monkeypatch.chdir(tmp_path)
    words = ["-m", "model=vae", *SHORT, "trainer.max_steps=4", "evaluation.pictures=0", "seed=3", "output_dir=sweep"]
    code, out, err = here(*words)
    assert code == 0, err
    (path,) = tmp_path.glob("sweep/**/result.json")
    record = json.loads(path.read_text())
    plan = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert (record["status"], record["seed"], record["fingerprint"]) == ("ok", 3, plan["jobs"][0]["fingerprint"])
    assert path.parent == tmp_path / "sweep" / plan["jobs"][0]["folder"]
    assert record["command"][:2] == ["vaerun", "model=vae"]
    assert (path.parent / ".hydra" / "hydra.yaml").read_text().startswith("hydra:")
    assert "recorded in" in (path.parent / "job.log").read_text()
    assert out == (tmp_path / "sweep" / "table.md").read_text()
    before = state(path.parent)
    code, again, err = here(*words)
    assert (code, again) == (0, out)
    assert "1 finished: skipped" in err
    assert state(path.parent) == before


@pytest.mark.slow
def test_stopped_at_any_moment(tmp_path: Path) -> None:
    """While Python starts, while torch and the data load, while it trains: it exits and has not failed."""
    endless = replace(settings(), trainer=replace(settings().trainer, max_steps=100000, epochs=100000))
    states = []
    for number, delay in enumerate((0.0, 0.05, 0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 12.0)):
        folder = tmp_path / str(number)
        child = JobProcess([Job(endless, folder, [], None, "unknown")])
        try:
            assert child.wait(delay) is None
            child.signal(signal.SIGTERM if number % 2 else signal.SIGINT)
            code = child.wait(ENOUGH)
            assert code is not None
            assert child.outcome(code).state in ("new", "resumable")
        finally:
            child.abandon()
        states.append(status(folder) if (folder / "result.json").exists() else None)
        assert states[-1] in (None, "interrupted")
    assert states[0] is None


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path, env: dict[str, str]) -> None:
    """A job killed; the launcher stopped by Ctrl-C, then killed; the command re-run each time."""
    words = ["-m", *LONG, "trainer.max_steps=600", "seed=0,1", "sweep.jobs=2"]
    (tmp_path / "whole").mkdir()
    with launched([*words, "output_dir=sweep"], tmp_path / "whole", env) as process:
        code, _, err = ended(process)
        assert code == 0, err
    places = [
        p.parent.relative_to(tmp_path / "whole") for p in sorted((tmp_path / "whole").glob("sweep/**/result.json"))
    ]
    zero, one = (tmp_path / place for place in places)
    words = [*words, "output_dir=sweep"]

    with launched(words, tmp_path, env) as process:
        wait_until(trains(zero), ENOUGH)
        pid = process_of(zero)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        code, out, err = ended(process)
    assert code == 1, err
    assert (status(zero), status(one)) == ("failed", "ok")
    assert failures(err) == {"seed=0": "killed by SIGKILL (manually, or by the system when memory ran out)"}
    assert json.loads((zero / "result.json").read_text())["error"] == failures(err)["seed=0"]
    assert printed_command(err) == words
    assert_same_run(one, tmp_path / "whole" / places[1])
    finished = (one / "result.json").read_bytes()

    has_advanced = trains(zero)
    with launched(words, tmp_path, env) as process:
        wait_until(has_advanced, ENOUGH)
        process.send_signal(signal.SIGINT)
        code, out, err = ended(process)
    assert code == 130
    assert status(zero) == "interrupted"
    assert err.splitlines()[-1] == "vaerun: stopped by SIGINT; run the same command again to resume"
    assert "1 not finished: seed=0" in err

    has_advanced = trains(zero)
    with launched(words, tmp_path, env) as process:
        wait_until(has_advanced, ENOUGH)
        pid = process_of(zero)
        assert pid is not None
        process.kill()
        ended(process)
        wait_until(lambda: not alive(pid), ENOUGH)
    assert status(zero) == "interrupted"  # it noticed, saved and stopped
    assert 0 < load(zero)["progress"]["step"] < 600

    with launched([*words, "--check"], tmp_path, env) as process:
        code, out, err = ended(process)
    assert "seed=0       600 steps  partly trained: will resume" in out
    assert "seed=1       600 steps  finished: skipped" in out
    with launched(words, tmp_path, env) as process:
        code, out, err = ended(process)
    assert code == 0, err
    assert "2 of 2 jobs done" in err
    assert_same_run(zero, tmp_path / "whole" / places[0])
    assert (one / "result.json").read_bytes() == finished
    assert (starts_of(zero), starts_of(one)) == (4, 1)


@pytest.mark.slow
def test_two_sweeps_at_once_on_one_folder(tmp_path: Path, env: dict[str, str]) -> None:
    words = ["-m", "model=vae", *SHORT, "seed=0,1", "output_dir=sweep"]
    with launched(words, tmp_path, env) as first, launched(words, tmp_path, env) as second:
        (code, out, err), (other_code, other_out, other_err) = ended(first), ended(second)
    assert (code, other_code) == (0, 0), err + other_err
    assert "2 of 2 jobs done" in err
    assert "2 of 2 jobs done" in other_err
    folders = [p.parent for p in tmp_path.glob("sweep/**/result.json")]
    assert [status(f) for f in folders] == ["ok"] * 2
    assert [starts_of(f) for f in folders] == [1] * 2
    for folder in folders:
        assert "vaerun: error" not in (folder / "job.log").read_text()
        steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(steps)
    assert out == other_out  # the same table of all jobs


def test_a_folder_in_use_is_not_an_error_of_the_job(tmp_path: Path) -> None:
    """The sweep waits for the other run; the log must not show an error that nobody has to act on."""
    folder = tmp_path / "run"
    with holding(folder):
        child = JobProcess([Job(settings(), folder, [])])
        try:
            code = child.wait(ENOUGH)
        finally:
            child.abandon()
    assert code == EXIT_BUSY
    assert child.outcome(code).state == "running"
    assert (folder / "job.log").read_text().startswith(f"vaerun: another run is using {folder}")


PLUGIN = """
import torch
from vaerun.estimators import elbo

calls = 0

def broken(joint, q, samples):
    global calls
    calls += 1
    if calls > 8:
        raise ZeroDivisionError("a bug\\nin two lines")
    return elbo(joint, q, samples)

def hungry(joint, q, samples):
    global calls
    calls += 1
    if calls > 8:
        torch.empty(10**15)
    return elbo(joint, q, samples)
"""


@pytest.mark.slow
def test_each_failure_has_its_reason(tmp_path: Path, env: dict[str, str]) -> None:
    """In its log, a bug shows its traceback; running out of memory and a diverging loss take one line."""
    package = tmp_path / "faulty"
    (package / "configs" / "estimator").mkdir(parents=True)
    (package / "__init__.py").write_text(PLUGIN)
    for name in ("broken", "hungry"):
        text = f"name: {name}\nfunction:\n  _target_: faulty.{name}\nsamples: 1\n"
        (package / "configs" / "estimator" / f"{name}.yaml").write_text(text)
    paths = os.pathsep.join(p for p in (str(tmp_path), env.get("PYTHONPATH")) if p)
    plugin_env = env | {"VAERUN_PLUGINS": "faulty", "PYTHONPATH": paths}
    words = ["-m", "model=vae", *SHORT, "output_dir=sweep"]
    with launched([*words, "estimator=broken,hungry,elbo"], tmp_path, plugin_env) as process:
        code, _, err = ended(process)
    assert code == 1, err
    folders = {name: next(tmp_path.glob(f"sweep/digits/vae/{name}-*")) for name in ("broken", "hungry", "elbo")}
    assert {name: status(f) for name, f in folders.items()} == {"broken": "failed", "hungry": "failed", "elbo": "ok"}
    reasons = failures(err)
    assert "a bug in two lines" in reasons["estimator=broken"]
    assert "memory" in reasons["estimator=hungry"]
    for name, line in (("broken", "raise ZeroDivisionError"), ("hungry", "memory ran out in training with")):
        for log in ("job.log", "run.log"):
            text = (folders[name] / log).read_text()
            assert line in text
            assert ("Traceback" in text) == (name == "broken")
    assert "Traceback" not in err
    # Each job began after the log of the previous one was complete.
    logs = [folders[name] / "run.log" for name in ("broken", "hungry", "elbo")]
    times = [log.stat().st_mtime for log in logs]
    assert times == sorted(times)

    began = time.time()
    with launched([*words, "trainer.learning_rate=1e30"], tmp_path, plugin_env) as process:
        code, _, err = ended(process)
    assert code == 1, err
    folder = next(p.parent for p in tmp_path.glob("sweep/**/result.json") if p.stat().st_mtime > began)
    record = json.loads((folder / "result.json").read_text())
    (reason,) = failures(err).values()
    assert record["error"] == reason
    assert "finite" in reason or "diverged" in reason
    assert reason in (folder / "run.log").read_text()
    assert f"vaerun: error: {reason}" in (folder / "job.log").read_text()


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="needs CIFAR-10: VAERUN_DATA")
def test_the_comparison_is_planned(tmp_path: Path, env: dict[str, str]) -> None:
    """All 51 jobs are composed and checked on the real data."""
    assert DATA is not None
    data_env = env | {"VAERUN_DATA": DATA}
    with launched(["-m", "experiment=vlae_cifar10_quick", "--check"], tmp_path, data_env) as process:
        code, out, err = ended(process)
    assert code == 0, err
    data, *lines = out.splitlines()
    assert data.startswith("data: cifar10: 20000 training, 5000 validation (held out of the")
    assert lines[0] == f"51 jobs in {tmp_path / 'outputs' / 'sweeps' / 'vlae_cifar10_quick'}"
    assert lines[-1].startswith("51 to run; at most ")
    assert len({line.split(" steps ")[0] for line in lines[1:-1]}) == 51
    assert not list(tmp_path.iterdir())
