"""trainer.deterministic=true, as far as a CPU can show it: what torch refuses is named, other runs are left alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs.commands import TINY

from vaerun.config.schema import Settings
from vaerun.errors import InputError, RunError
from vaerun.launch import replicas
from vaerun.launch.job import Job
from vaerun.objectives import Variational
from vaerun.training.determinism import reporting_nondeterminism, set_deterministic

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
REFUSED = "the operation put_ has no deterministic implementation on this device: choose modules without it, or set"


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(CUBLAS, raising=False)
    yield
    torch.use_deterministic_algorithms(False)


def put() -> None:
    """An operation without a deterministic implementation, on a CPU too."""
    torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))


@pytest.mark.parametrize("wanted", [True, False])
def test_algorithms(wanted: bool) -> None:
    """The workspace is set for later runs of this process, too."""
    set_deterministic(wanted)
    assert torch.are_deterministic_algorithms_enabled() is wanted
    assert os.environ[CUBLAS] == ":4096:8"


def test_a_workspace_that_was_chosen_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS, ":16:8")
    set_deterministic(True)
    assert os.environ[CUBLAS] == ":16:8"


@pytest.mark.parametrize("kind", [InputError, RunError])
def test_errors(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.use_deterministic_algorithms(True)
    with pytest.raises(kind, match=f"trainer.deterministic=true: {REFUSED}"), reporting_nondeterminism(kind):
        put()
    monkeypatch.setenv(CUBLAS, ":0:0")
    with (
        pytest.raises(kind, match=r"CUBLAS_WORKSPACE_CONFIG=:4096:8 .* it was :0:0 at"),
        reporting_nondeterminism(kind),
    ):
        raise RuntimeError("Deterministic behavior was enabled, you must set CUBLAS_WORKSPACE_CONFIG=:4096:8")
    for error in (RuntimeError("another"), RunError("known"), ValueError("other")):
        with pytest.raises(type(error)) as raised, reporting_nondeterminism(kind):
            raise error
        assert raised.value is error


@pytest.mark.usefixtures("command_environment")
@pytest.mark.parametrize(("grad", "code"), [(False, 2), (True, 1)], ids=["before the run", "in training"])
def test_a_run(
    here: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    grad: bool,
    code: int,
) -> None:
    """Rejected before it begins if its loss has such an operation, stopped if only its gradient has."""
    loss = Variational.loss

    def with_put(self: Variational, *arguments: Any) -> Any:
        if torch.is_grad_enabled() or not grad:
            put()
        return loss(self, *arguments)

    monkeypatch.setattr(Variational, "loss", with_put)
    words = ["model=vae", *TINY, "trainer.max_steps=3", "trainer.deterministic=true", f"output_dir={tmp_path / 'run'}"]
    exit_code, out, err = here(*words)
    lines = 2 if grad else 1  # a run that has started says first what was read
    assert (exit_code, out, err.count("\n")) == (code, "", lines), err
    assert f"trainer.deterministic=true: {REFUSED}" in err
    assert (tmp_path / "run").exists() == grad


def test_runs_that_differ_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's switch applies to the whole process."""
    monkeypatch.setattr(replicas, "resolve_device", lambda name: torch.device("cuda"))

    def make_jobs(*deterministic: bool) -> list[Job]:
        jobs = []
        for value in deterministic:
            settings = Settings()
            settings.trainer.deterministic = value
            jobs.append(Job(settings, Path("x"), []))
        return jobs

    assert replicas.can_run_concurrently(make_jobs(False, False))
    assert replicas.can_run_concurrently(make_jobs(True, True))
    assert not replicas.can_run_concurrently(make_jobs(False, True))
