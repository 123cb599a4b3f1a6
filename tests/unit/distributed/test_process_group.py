"""Two and three processes give the training of one process at the same batch size, and end together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.models.precision import set_precision
from support.runs.commands import load
from support.runs.processes import CASES, DEATHS, ENDINGS, MODELS, launch, outcomes, run

Outcomes = list[dict[str, Any]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcomes]:
    """Every case on two ranks, in a single launch; some resume from another's checkpoint."""
    folder = tmp_path_factory.mktemp("two")
    set_precision(torch.float64)  # the autouse fixture that does so is per test
    single = run(CASES["signal to one"], folder / "alone")
    set_precision(torch.float32)
    assert single["kind"] == "Interrupted"
    resume = {"signal to one@alone": str(folder / "alone"), "signal to one@two": str(folder / "signal to one")}
    resume["cut@two"] = str(folder / "cut")
    done = launch([*MODELS, *ENDINGS, *resume], 2, folder, resume)
    assert done.returncode == 0, done.stderr
    assert "terminate" not in done.stderr
    return folder, outcomes(folder, 2)


def assert_close(one: dict[str, Any], other: dict[str, Any], tolerance: float, minimum: float = 0.0) -> None:
    """States and logged metrics agree to a tolerance relative to each tensor's largest entry."""
    assert one["state"].keys() == other["state"].keys()
    for key, value in one["state"].items():
        value, actual = value.double(), other["state"][key].double()  # masks and counts too
        atol = tolerance * max(float(value.abs().max()), minimum)
        assert torch.allclose(actual, value, rtol=0, atol=atol, equal_nan=True), key
    assert len(one["records"]) == len(other["records"]) > 0
    for a, b in zip(one["records"], other["records"], strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert b[key] == (value if value is None else pytest.approx(value, rel=tolerance, abs=minimum)), key


@pytest.mark.parametrize("name", MODELS)
def test_same_curve_and_parameters_as_one(name: str, two: tuple[Path, Outcomes], tmp_path: Path) -> None:
    one, (first, second) = run(MODELS[name], tmp_path), (rank[name] for rank in two[1])
    assert one["step"] == first["step"] == second["step"] == 12
    assert_close(one, first, 1e-10, 1e-12)
    if "won" in CASES[name].events:
        assert first["state"]["won"] == 6
    moved = CASES[name].make(None).state_dict()  # type: ignore[arg-type]
    assert any(not torch.allclose(moved[key], value) for key, value in first["state"].items())
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key])


@pytest.mark.slow
@pytest.mark.parametrize(("size", "dtype", "tolerance"), [(3, "float64", 1e-10), (2, "float32", 1e-4)])
def test_three_processes_and_single_precision(size: int, dtype: str, tolerance: float, tmp_path: Path) -> None:
    done = launch([*MODELS], size, tmp_path / "all", dtype=dtype)
    assert done.returncode == 0, done.stderr
    found = outcomes(tmp_path / "all", size)
    set_precision(getattr(torch, dtype))
    for name in MODELS:
        # Adam turns a gradient that is zero up to rounding into a step of arbitrary size.
        minimum = 1e-12 if dtype == "float64" else 0.05
        assert_close(run(MODELS[name], tmp_path / name), found[0][name], tolerance, minimum)
        for key, value in found[0][name]["state"].items():
            assert all(torch.equal(value, other[name]["state"][key]) for other in found[1:])


@pytest.mark.parametrize("name", ["not finite", "not finite for the first", "validation not finite"])
def test_not_finite_ends_all_at_the_same_step(name: str, two: tuple[Path, Outcomes], tmp_path: Path) -> None:
    # The bad image is the last of its batch: only the second rank sees it.
    one, (first, second) = run(ENDINGS[name], tmp_path), (rank[name] for rank in two[1])
    assert one["kind"] == first["kind"] == second["kind"] == "RunError"
    assert one["error"] == first["error"] == second["error"]
    assert {"not finite": "'kl'", "not finite for the first": "'reconstruction'"}.get(name, "val/elbo") in one["error"]
    assert first["shared"]
    assert second["shared"]
    assert_close(one, first, 1e-10, 1e-12)  # the parameters before that step
    assert_close(one, second | {"records": first["records"]}, 1e-10, 1e-12)


@pytest.mark.parametrize(
    ("name", "step"),
    [("signal to one", 5), ("signal to one, late", 6), ("signal to the first", 5), ("signal in validation", 8)],
)
def test_signal_to_one_ends_all_at_the_same_step(name: str, step: int, two: tuple[Path, Outcomes]) -> None:
    # A signal that arrives after the step's all-reduce is sent with the next one.
    folder, (first, second) = two[0], (rank[name] for rank in two[1])
    assert first["kind"] == second["kind"] == "Interrupted"
    assert first["shared"]
    assert second["shared"]
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key])
    saved = load(folder / name)
    assert saved["progress"]["step"] == step
    assert saved["progress"]["validation_due"] == (name == "signal in validation")
    assert all(torch.equal(saved["objective"][key], value) for key, value in first["state"].items())
    assert not list((folder / name).glob("*[0-9].pt"))


def test_goes_on_with_another_number_of_processes(two: tuple[Path, Outcomes], tmp_path: Path) -> None:
    folder, found = two
    whole = run(MODELS["vae"], tmp_path / "whole")
    resumed = {
        "two as one": run(MODELS["vae"], tmp_path / "resumed", resume=folder / "signal to one"),
        "one as two": found[0]["signal to one@alone"],
        "two as two": found[0]["signal to one@two"],
    }
    for name, outcome in resumed.items():
        assert outcome["step"] == 12, name
        assert_close(whole, outcome, 1e-10, 1e-12)


def test_metrics_of_an_interval_that_a_checkpoint_cuts(two: tuple[Path, Outcomes]) -> None:
    # Metrics are logged every five steps; the sums in the checkpoint after three steps are those of all ranks.
    folder, (first, _) = two
    assert load(folder / "cut")["metrics"]["count"] == 8 + 8 + 8
    assert_close(first["vae clipped"], first["cut@two"], 1e-12, 1e-12)


def test_early_stopping_is_the_first_processes(two: tuple[Path, Outcomes], tmp_path: Path) -> None:
    one, (first, second) = run(ENDINGS["early stopping"], tmp_path), (rank["early stopping"] for rank in two[1])
    assert one["step"] == first["step"] == second["step"] == 16
    assert first["best"] == second["best"] == 3.0
    assert first["seen"] == one["seen"]
    assert "seen" not in second
    best = load(two[0] / "early stopping", "best")
    assert best["epoch"] == 2.0


def test_checkpoints_are_written_by_the_first(two: tuple[Path, Outcomes], tmp_path: Path) -> None:
    one, first = run(ENDINGS["checkpoint at every step"], tmp_path), two[1][0]["checkpoint at every step"]
    assert_close(one, first, 1e-10, 1e-12)
    files = sorted(p.name for p in (two[0] / "checkpoint at every step").rglob("*") if "events" not in p.name)
    assert files == ["best.pt", "checkpoints", "last.pt", "metrics.jsonl", "previous.pt"]
    assert load(two[0] / "checkpoint at every step", "previous")["progress"]["step"] == 12 - 1


@pytest.mark.parametrize(
    ("name", "what", "steps"),
    [("other parameters", "parameters", 0), ("other settings", "settings", 0), ("parameters drift apart", "para", 4)],
)
def test_processes_that_differ_are_refused(name: str, what: str, steps: int, two: tuple[Path, Outcomes]) -> None:
    for rank in two[1]:
        assert rank[name]["kind"] == "RunError"
        assert what in rank[name]["error"]
        assert "trainer.processes=2" in rank[name]["error"]
    assert len(two[1][0][name]["records"]) == steps  # noticed at the start, or before the next validation


@pytest.mark.slow
@pytest.mark.parametrize("name", DEATHS)
def test_one_that_dies_ends_all(name: str, tmp_path: Path) -> None:
    done = launch([name], 2, tmp_path)
    assert done.returncode != 0
    assert not (tmp_path / "0.pt").exists()
    assert "terminate called" not in done.stderr
    survivor, cause = {
        "raises": (0, "another process of this run has ended: process 1: ValueError: what a bug looks like"),
        "killed": (0, "another process of this run has ended: "),
        "first raises": (1, "process 0 of this run failed"),
    }[name]
    assert (tmp_path / f"lost{survivor}").read_text().startswith(cause)
    assert not (tmp_path / f"lost{1 - survivor}").exists()
    blamed = done.stderr.partition("Root Cause")[2]  # by torchrun
    assert f"rank      : {1 - survivor} " in blamed
    if name == "killed":
        assert "(SIGKILL)" in blamed
    else:
        assert f"[rank{1 - survivor}]: Traceback" in done.stderr
        assert f"[rank{1 - survivor}]: {'ValueError: what a bug' if survivor == 0 else 'StopIteration'}" in done.stderr
