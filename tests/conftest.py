"""Shared fixtures: float64, validated arguments of distributions, a fixed seed, and the commands in this process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.models.precision import set_precision
from support.runs.adversarial_runs import Command, FinishedRun, finish
from support.runs.evaluating import SMALL
from support.sweeps.sweeping import Sweeping, compose_quickly
from torch.distributions import Distribution

from vaerun.cli import evaluate as evaluation
from vaerun.cli import main
from vaerun.signals import SIGNALS

HANGUP = signal.getsignal(signal.SIGHUP)


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # the tensors are tiny, and threads only wait for each other
    # torch.func imports a part of torch that still uses torch.jit.script; nothing here can be done about it.
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script` is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def exact_arithmetic() -> Iterator[None]:
    """Test identities in float64, and restore whatever a test changes."""
    dtype, checked = torch.get_default_dtype(), Distribution._validate_args
    set_precision(torch.float64)
    Distribution.set_default_validate_args(True)
    torch.manual_seed(0)
    yield
    set_precision(dtype)
    Distribution.set_default_validate_args(checked)


def usual_signals() -> None:
    """Restore the handlers of a new process; an ignored signal would be ignored by every process that a test starts."""
    for signum in {*SIGNALS, signal.SIGHUP}:
        if signum == signal.SIGINT:
            signal.signal(signum, signal.default_int_handler)
        elif signum == signal.SIGHUP and HANGUP is signal.SIG_IGN:  # under nohup: ignored in this process only
            signal.signal(signum, lambda *_: None)
        else:
            signal.signal(signum, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Commands called in this process, by a test or a fixture, leave signals ignored."""
    usual_signals()
    yield
    usual_signals()


@pytest.fixture
def single_precision() -> None:
    """Use float32, as real training does."""
    set_precision(torch.float32)


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    variables = {"VAERUN_CACHE": str(tmp_path_factory.mktemp("cache")), "OMP_NUM_THREADS": "1"}
    return {k: v for k, v in os.environ.items() if not k.startswith("VAERUN")} | variables


@pytest.fixture
def command_environment(single_precision: None, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    """The command's environment, as in a separate process; restored after the test."""
    monkeypatch.delenv("VAERUN_DATA", raising=False)
    monkeypatch.setenv("VAERUN_CACHE", env["VAERUN_CACHE"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command `vaerun` in this process, which avoids importing torch again."""

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", ["vaerun", *words])
        code = 0
        try:
            main.main()
        except SystemExit as left:
            code = int(left.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def evaluate(command_environment: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        return evaluation.main([str(w) for w in words]), *capsys.readouterr()

    return call


@pytest.fixture
def run(here: Callable[..., tuple[int, str, str]], command_environment: None, tmp_path: Path) -> Path:
    """A finished run: a VAE with two latent dimensions on digits."""
    code, _, _ = here("model=vae", *SMALL, f"output_dir={tmp_path / 'run'}")
    assert code == 0
    return tmp_path / "run"


@pytest.fixture
def finished(here: Command, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., FinishedRun]:
    """An adversarial run of these words, shared by the session and read-only."""
    return lambda *words: finish(here, tmp_path_factory, words)


@pytest.fixture
def copied(here: Command, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a finished run of these words."""
    return lambda *words: finish(here, tmp_path_factory, words).copy(tmp_path / "run")


@pytest.fixture
def stranger(copied: Callable[..., Path], command_environment: None) -> Path:
    """A run directory from somebody else."""
    return copied("model=vae", *SMALL)


@pytest.fixture
def cache(env: dict[str, str]) -> Path:
    return Path(env["VAERUN_CACHE"])


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweeping:
    """A folder for a sweep whose jobs are stubs."""
    return Sweeping(tmp_path / "sweep", tmp_path / "notes", monkeypatch)


@pytest.fixture
def quick_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in the test's folder, and jobs that differ only in their seed are composed once."""
    monkeypatch.chdir(tmp_path)
    compose_quickly(monkeypatch)
