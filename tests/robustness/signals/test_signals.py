"""Signals from a command's first line to its last: the documented exit code and one line, whatever it is doing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runs.commands import COMMAND, LONG

from vaerun.cli import data
from vaerun.data import cache
from vaerun.data.arrays import Arrays
from vaerun.errors import Interrupted
from vaerun.signals import ShutdownSignal, interrupt_on_signal, is_importing

QUICK = ["trainer.max_steps=2", "trainer.batch_size=8", "data.validation=10"]
CODES = {"SIGINT": 130, "SIGTERM": 75, "SIGUSR1": 75, "SIGHUP": 75}
CATCHES = 1 << (signal.SIGUSR1 - 1)  # which Python itself does not


def listens(process: subprocess.Popen[str]) -> None:
    """Wait until a process has installed its signal handlers, which it does before any slow import.

    Python's own start takes some 25 ms before that.
    """
    until = time.monotonic() + 60
    status = Path("/proc", str(process.pid), "status")
    while time.monotonic() < until and process.poll() is None:
        caught = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigCgt"))
        if int(caught, 16) & CATCHES:
            loaded = Path("/proc", str(process.pid), "maps").read_text()
            assert not any(name in loaded for name in ("libtorch", "_multiarray_umath"))
            return
        time.sleep(0.001)
    raise AssertionError(process.communicate())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see what a process listens to")
@pytest.mark.parametrize(
    ("program", "name", "seconds"),
    [
        ("vaerun", "SIGTERM", 0.0),
        ("vaerun", "SIGINT", 0.2),
        ("vaerun", "SIGUSR1", 0.5),
        ("vaerun", "SIGTERM", 1.0),
        ("vaerun -m", "SIGINT", 0.3),
        ("vaerun-eval", "SIGHUP", 0.3),
        ("vaerun-data", "SIGTERM", 0.0),
        ("vaerun-table", "SIGINT", 0.0),
    ],
)
def test_stopped_in_its_first_second(program: str, name: str, seconds: float, tmp_path: Path, env: Any) -> None:
    folder, words = tmp_path / "here", {"vaerun": LONG, "vaerun -m": ["-m", *LONG, "seed=0,1"]}
    folder.mkdir()
    words |= {"vaerun-eval": ["run=run"], "vaerun-data": ["mnist"], "vaerun-table": ["."]}
    command = str(Path(COMMAND).with_name(program.split()[0]))
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([command, *words[program]], cwd=folder, env=env, **pipes)
    listens(process)
    time.sleep(seconds)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (CODES[name], ""), err
    assert err == f"{program.split()[0]}: stopped by {name}; run the same command again to resume\n"
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see what a process listens to")
@pytest.mark.parametrize("words", [LONG, ["-m", *LONG, "seed=0,1"]], ids=["run", "sweep"])
def test_nohup(words: list[str], tmp_path: Path, env: Any) -> None:
    """Under nohup a command survives its terminal; other signals still stop it."""
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(["nohup", COMMAND, *words], cwd=tmp_path, env=env, text=True, **pipes)
    listens(process)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (75, "vaerun: stopped by SIGTERM; run the same command again to resume\n")


def test_an_import_is_not_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in an import may be lost or leave a half-initialised module: the process exits instead."""
    monkeypatch.syspath_prepend(str(tmp_path))
    seen: list[bool] = []
    monkeypatch.setattr("builtins.look", lambda: seen.append(is_importing(sys._getframe())), raising=False)
    (tmp_path / "a_module_that_looks.py").write_text("look()\n")
    __import__("a_module_that_looks")
    seen.append(is_importing(sys._getframe()))
    assert seen == [True, False]

    code = f"""
import os, signal, sys
sys.path.insert(0, {str(tmp_path)!r})
from vaerun.signals import handling_signals, interrupt_on_signal
with handling_signals(interrupt_on_signal("program", lambda: print("tidied", flush=True))):
    import a_module_that_is_stopped
"""
    (tmp_path / "a_module_that_is_stopped.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGTERM)\nexcept BaseException:\n    pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    line = "program: stopped by SIGTERM; run the same command again to resume\n"
    assert (done.returncode, done.stdout, done.stderr) == (75, "tidied\n", line)


def test_outside_an_import_it_is_an_exception() -> None:
    with pytest.raises(Interrupted), ShutdownSignal(on_immediate=interrupt_on_signal("program")):
        signal.raise_signal(signal.SIGUSR1)


def test_a_second_interrupt_ends_at_once() -> None:
    with ShutdownSignal() as stop, stop.deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # what a job's system sends to all processes: saving goes on
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted):
            stop.check()


def test_a_late_signal_changes_no_exit_code() -> None:
    code = """
import os, signal
from vaerun.signals import exit_on_signal, handling_signals
with handling_signals(exit_on_signal("program")):
    pass
for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
    os.kill(os.getpid(), getattr(signal, name))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 75)])
@pytest.mark.parametrize("program", ["vaerun", "vaerun-data"])
def test_stopped_while_data_is_prepared(
    program: str,
    name: str,
    code: int,
    here: Callable[..., tuple[int, str, str]],
    command_environment: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = np.random.RandomState(0).randint(0, 256, (60, 1, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "mnist.npz", train_images=images)
    store, stops = cache._store, [name]

    def stopped(arrays: Arrays, folder: Path) -> None:
        store(arrays, folder)
        if stops:
            signal.raise_signal(getattr(signal, stops.pop()))

    monkeypatch.setattr(cache, "_store", stopped)
    monkeypatch.setenv("VAERUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def command() -> tuple[int, str]:
        if program == "vaerun":
            ended = here("data=mnist", *LONG, *QUICK, f"data.root={tmp_path}", "output_dir=out/run")
            return ended[0], ended[2]
        return data.main(["mnist", "--root", str(tmp_path)]), capsys.readouterr().err

    assert command() == (code, f"{program}: stopped by {name}; run the same command again to resume\n")
    assert not (tmp_path / "out").exists()
    assert [p.name for p in (tmp_path / "cache" / "prepared").iterdir()] == ["mnist.lock"]
    code_again, err = command()
    assert code_again == 0, err
