"""CUDA graphs, GPU kernels and concurrent runs on a GPU; skipped without one."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs.captured_steps import captured, state, step_of, steps
from support.runs.commands import assert_same_bits, load
from support.runs.processes import MODELS

from vaerun.cli.main import main
from vaerun.inference import factor
from vaerun.training.step import side_stream

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.usefixtures("single_precision"),
]
GPU = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the commands do: torch reads it once per process


@pytest.mark.parametrize("name", MODELS)
def test_replays_are_the_steps(name: str) -> None:
    """Replayed CUDA graphs give the eager steps (test_cuda_graph.py shows it on the CPU, with a tape).

    Convolutions may choose other algorithms; a warm-up's weight is divided on the device, which rounds differently.
    """
    with side_stream(GPU):
        plain, other = step_of(MODELS[name], "cuda"), step_of(MODELS[name], "cuda", source=True)
        graphed = captured(other)
        steps(plain, plain, 0, 9)
        steps(graphed, other, 0, 9)
        replayed, expected = state(other), state(plain)
    if name in ("convolutional vae", "vae with warm-up"):
        torch.testing.assert_close(replayed, expected, rtol=1e-3, atol=1e-4)
    else:
        assert_same_bits(replayed, expected)


@pytest.mark.parametrize("d", [1, 17, 32, 50, 128])
def test_kernels_factorise_and_solve(d: int) -> None:
    spread = torch.randn(40, d, d + 3, device=GPU)
    precision = torch.eye(d, device=GPU) + spread @ spread.mT / d
    right = torch.randn(40, d, device=GPU)
    made, solution = factor.factor_and_solve(precision, right)
    assert len(made.inverses)  # the kernel was used
    torch.testing.assert_close(made.lower, torch.linalg.cholesky(precision), rtol=1e-4, atol=1e-5)
    exact = torch.linalg.solve(precision.double(), right.double())
    torch.testing.assert_close(solution.double(), exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(factor.solve(made, right).double(), exact, rtol=1e-4, atol=1e-5)
    precision[3] = -precision[3]
    made, solution = factor.factor_and_solve(precision, right)
    assert bool(solution[3].isnan().all())
    assert bool(solution[[*range(3), *range(4, 40)]].isfinite().all())


@pytest.mark.parametrize("name", ["vae", "vlae", "sa_vae", "gan"])
def test_runs_side_by_side_are_runs_alone(name: str) -> None:
    """Three threads with different seeds, each with its own stream and generator, equal the same runs one by one.

    Under double backward (SA-VAE) autograd's order of summation depends on what each thread has computed before.
    """
    barrier, states, lock = threading.Barrier(3), dict[tuple[int, bool], Any](), threading.Lock()

    def train(seed: int, concurrent: bool) -> None:
        with side_stream(GPU):
            with lock:
                step = step_of(MODELS[name], "cuda", source=concurrent, seed=seed)
            graphed = captured(step)
            if concurrent:
                barrier.wait()
            steps(graphed, step, 0, 60)
            states[seed, concurrent] = state(step)

    threads = [threading.Thread(target=train, args=(seed, True)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(3):
        train(seed, False)
        if name == "sa_vae":
            torch.testing.assert_close(states[seed, True], states[seed, False], rtol=1e-3, atol=1e-4)
        else:
            assert_same_bits(states[seed, True], states[seed, False])


def command(*words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["vaerun", "data=digits", "evaluation.samples=50", "trainer.log_every=5", *words])
    main()


@pytest.mark.usefixtures("command_environment")
def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas equal stand-alone runs; deterministic algorithms give the same bits, whatever is logged."""
    monkeypatch.chdir(tmp_path)
    base = ("model=vlae", "trainer.max_steps=40", "trainer.device=cuda")
    command(*base, "trainer.replicas=2", "output_dir=together", monkeypatch=monkeypatch)
    for words, folder in (
        (("seed=1",), "alone"),
        (("seed=1", "trainer.compile=none"), "plain"),
        (("seed=1", "trainer.deterministic=true"), "deterministic"),
        (("seed=1", "trainer.deterministic=true", "trainer.log_every=1", "evaluation.pictures=0"), "again"),
    ):
        command(*base, *words, f"output_dir={folder}", monkeypatch=monkeypatch)
    torch.use_deterministic_algorithms(False)
    first = load(tmp_path / "together" / "seed1", "best")["objective"]
    for folder in ("alone", "plain"):
        assert_same_bits(load(tmp_path / folder, "best")["objective"], first)
    other = load(tmp_path / "deterministic", "best")["objective"]
    assert_same_bits(load(tmp_path / "again", "best")["objective"], other)
    torch.testing.assert_close(other, first, rtol=1e-3, atol=1e-4)
