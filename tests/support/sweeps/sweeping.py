"""Helpers of the sweep tests: jobs that are small stubs (stub_worker.py), and launchers that may be killed."""

from __future__ import annotations

import copy
import json
import os
import shlex
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import filelock
import hydra
import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from support.runs.commands import TINY

import vaerun.report
from vaerun.config.plugins import builtin_config_dir
from vaerun.config.schema import Settings, SweepSettings
from vaerun.config.settings import to_settings
from vaerun.launch import process
from vaerun.launch.job import Job
from vaerun.signals import ShutdownSignal
from vaerun.sweep import local
from vaerun.sweep.local import LocalLauncher
from vaerun.sweep.plan import PlannedJob, job_state, label_jobs, write_plan
from vaerun.sweep.slots import Slot
from vaerun.sweep.view import SweepProgress

STUB = Path(__file__).with_name("stub_worker.py")
KILLED = "killed by SIGKILL (manually, or by the system when memory ran out)"
Here = Callable[..., tuple[int, str, str]]
WORDS = ["-m", "model=vae", *TINY, "trainer.max_steps=20"]


@cache
def settings() -> Settings:
    """Settings of a run that takes a moment."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(builtin_config_dir()), version_base="1.3"):
        return to_settings(hydra.compose("config", ["model=vae", *TINY]))


def compose_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose jobs that differ only in the seed once: Hydra takes a fifth of a second for each."""
    original = ConfigLoaderImpl.load_sweep_config
    composed: dict[tuple[str, ...], DictConfig] = {}

    def load(self: ConfigLoaderImpl, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        seeds = [word.partition("=")[2] for word in sweep_overrides if word.startswith("seed=")]
        if len(seeds) != 1 or not seeds[0].isdigit():
            return original(self, master_config, sweep_overrides)
        key = tuple(word for word in sweep_overrides if not word.startswith("seed="))
        if key not in composed:
            composed[key] = original(self, master_config, sweep_overrides)
        config = copy.deepcopy(composed[key])
        config.seed = int(seeds[0])
        return config

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", load)


class Sweeping:
    """A sweep's folder, whose jobs are stubs.

    Arguments:
        folder: of the sweep; need not exist.
        notes: file in which the stubs note what they do.
    """

    def __init__(self, folder: Path, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._notes, self.monkeypatch = folder, notes, monkeypatch
        notes.touch()
        stub = [sys.executable, "-I", "-S", str(STUB)]
        monkeypatch.setattr(process, "worker_command", lambda file: [*stub, str(file)])
        monkeypatch.setattr(vaerun.report, "write_all", lambda folder: f"table of {folder.name}")
        monkeypatch.setattr(local, "GRACE_SECONDS", 0.5)
        monkeypatch.setenv("STUB_NOTES", str(notes))
        monkeypatch.setenv("STUB_SWEEP", str(folder))
        self.does({})

    def does(self, what: dict[int, str | list[str]]) -> None:
        """Set what the jobs of these seeds do (at their first, second, ... attempt); all others finish at once."""
        self.monkeypatch.setenv("STUB", json.dumps(what))

    def forget(self) -> None:
        """Clear the notes."""
        self._notes.write_text("")

    def notes(self, key: str | None = None, seed: int | None = None) -> list[dict[str, Any]]:
        """The notes in order, optionally those with this key or of this seed only."""
        notes = [json.loads(line) for line in self._notes.read_text().splitlines()]
        return [n for n in notes if (key is None or key in n) and (seed is None or n["seed"] == seed)]

    def began(self) -> list[int]:
        """Seeds of the processes started, in order."""
        return [note["seed"] for note in self.notes("begin")]

    def trained(self) -> list[int]:
        """Seeds of the runs that started training, in order."""
        return [note["seed"] for note in self.notes("train")]

    def until(self, key: str, seed: int | None = None, count: int = 1) -> None:
        """Wait until the notes contain this."""
        wait_until(lambda: len(self.notes(key, seed)) >= count)

    def results(self) -> dict[int, dict[str, Any]]:
        """result.json by seed."""
        results = [json.loads(p.read_text()) for p in self.folder.glob("**/result.json")]
        assert len({r["seed"] for r in results}) == len(results)
        return {r["seed"]: r for r in results}

    def status(self) -> dict[int, str]:
        return {seed: r["status"] for seed, r in self.results().items()}

    # -- without Hydra ------------------------------------------------------------------------------------------

    def jobs(self, *seeds: int, **trainer: Any) -> list[PlannedJob]:
        """Jobs planned as a sweep plans them."""
        planned = []
        for number, seed in enumerate(seeds):
            job_settings = replace(settings(), seed=seed, trainer=replace(settings().trainer, **trainer))
            job = Job(job_settings, self.folder / f"job{seed}", [f"seed={seed}"], None, f"fingerprint{seed}")
            path = job.folder / "result.json"
            result = json.loads(path.read_text()) if path.exists() else None
            planned.append(PlannedJob(job, number, 20, job_state(job), previous_result=result))
        label_jobs(planned)
        write_plan(self.folder, ["vaerun", "-m"], planned)
        return planned

    def local(
        self, jobs: list[PlannedJob], slots: int | list[Slot] = 1, stop: ShutdownSignal | None = None, **sweep: Any
    ) -> LocalLauncher:
        """The launcher that runs them."""
        slots = [Slot(1)] * slots if isinstance(slots, int) else slots
        progress = SweepProgress(jobs, 0, len(slots))
        return LocalLauncher(SweepSettings(**sweep), slots, progress, stop or ShutdownSignal())

    def run(self, *seeds: int, slots: int = 1, **sweep: Any) -> dict[int, tuple[str, str]]:
        """State and reason of each seed."""
        jobs = self.jobs(*seeds)
        outcomes = self.local(jobs, slots, **sweep).run(jobs)
        return {p.job.settings.seed: (outcomes[p.number].state, outcomes[p.number].reason) for p in jobs}


def wait_until(true: Callable[[], Any], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether this process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Lock a run directory as a run of another process does."""
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lock"):
        yield


def hold(folder: Path, seconds: float) -> None:
    """Lock it for this long; the file `held` in it shows that the lock is taken."""
    with holding(folder):
        (folder / "held").touch()
        time.sleep(seconds)


class Launcher:
    """A fork of this process that calls a function, with its output in a file."""

    def __init__(self, call: Callable[[], Any], output: Path, terminal: int | None = None) -> None:
        self.output, self.code = output, None
        output.touch()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the fork lacks the other threads: none matters
            self.pid = os.fork()
        if self.pid == 0:
            _become(call, output, terminal)

    def wait(self, seconds: float = 30.0) -> int:
        """The exit code (negative: by that signal)."""
        wait_until(self._ended, seconds)
        assert self.code is not None
        return self.code

    def _ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = None if pid == 0 else os.waitstatus_to_exitcode(status)
        return self.code is not None

    def send(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def text(self) -> str:
        return self.output.read_text()

    def end(self) -> None:
        """Kill it if it still runs."""
        if not self._ended():
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


def _become(call: Callable[[], Any], output: Path, terminal: int | None) -> None:
    code = 70
    try:
        os.setsid()
        target = os.open(output, os.O_WRONLY | os.O_APPEND) if terminal is None else terminal
        os.dup2(target, 1)
        os.dup2(target, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        torch.set_num_threads(1)
        returned = call()
        code = int(returned) if isinstance(returned, int) else 0
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        with suppress(OSError):
            traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def planned(text: str) -> dict[str, str]:
    """The lines of a plan: {label: action}."""
    actions = {}
    for line in text.splitlines():
        if line.startswith("  ") and " steps  " in line:
            left, _, action = line.partition(" steps  ")
            actions[left.rpartition(" ")[0].strip()] = action
    return actions


def printed_command(err: str) -> list[str]:
    """The arguments of the command that a sweep prints at its end."""
    lines = err.splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith("to run only these")]
    words = shlex.split(lines[at + 1])
    assert words[0] == "vaerun"
    return words[1:]


def failures(err: str) -> dict[str, str]:
    """Failures as the summary lists them: {label: reason}."""
    lines = err.splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.endswith(" failed:")]
    reasons: dict[str, str] = {}
    for line in lines[at + 1 :]:
        if not line.startswith("  "):
            break
        if not line.startswith("    "):
            label, _, reason = line.strip().partition(": ")
            reasons[label] = reason
    assert lines[at] == f"{len(reasons)} failed:"
    return reasons
