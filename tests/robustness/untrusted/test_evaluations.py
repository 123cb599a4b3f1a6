"""What an untrusted run requests of an evaluation, and feeds into it: success, or one line."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.robustness.untrusted import assert_harmless, assert_rejected, edit_config, open_all

from vaerun.cli import table
from vaerun.run import preflight as checks
from vaerun.run.evaluate.write import write_arrays
from vaerun.run.family import LikelihoodFamily
from vaerun.storage.npz import read_npz


@pytest.mark.parametrize("name", ["file", "allow_pickle", "args", "self"])
def test_values_per_image_of_any_name(stranger: Path, capsys: Any, cache: Path, name: str) -> None:
    """They are kept when others are added. np.savez would take such a name for one of its own arguments."""
    path = stranger / "per_example.npz"
    member = io.BytesIO()
    np.save(member, np.arange(3.0))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{name}.npy", member.getvalue())
    before = read_npz(path)
    opened = open_all(stranger, capsys, ("eval",))
    assert opened.codes == {"eval": 0}
    assert_harmless(opened, stranger, cache)
    after = read_npz(path)
    assert all(np.array_equal(after[key], value, equal_nan=True) for key, value in before.items())
    assert len(after) > len(before)


def test_values_per_image_are_written_as_numpy_writes_them(tmp_path: Path) -> None:
    arrays = {"a": np.arange(5.0), "b/c": np.zeros((2, 3), dtype=np.float32), "d": np.array(3)}
    write_arrays(tmp_path / "ours.npz", arrays)
    np.savez_compressed(tmp_path / "theirs.npz", **arrays)
    assert (tmp_path / "ours.npz").read_bytes() == (tmp_path / "theirs.npz").read_bytes()


def test_samples_of_the_gradient_that_fit_into_no_memory(
    stranger: Path, capsys: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(plain: dict[str, Any]) -> None:
        plain["evaluation"]["gradient_noise"] = True
        plain["evaluation"]["noise"]["samples"] = 10**9

    def estimate(estimator: Any, infer: Any, joint: Any, samples: int) -> None:
        assert samples == 10**9
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(checks, "estimate", estimate)

    edit_config(stranger, change)
    opened = open_all(stranger, capsys)
    assert (opened.codes["load_run"], opened.codes["eval"]) == (0, 2)
    assert "evaluation.noise.samples=1000000000: memory ran out for 2 images" in opened.text
    assert_harmless(opened, stranger, cache)


def test_memory_that_runs_out_in_what_cannot_be_halved(
    stranger: Path, capsys: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(LikelihoodFamily, "evaluate", staticmethod(evaluate))
    opened = open_all(stranger, capsys, ("eval",))
    assert opened.codes == {"eval": 1}
    assert opened.text.count("\n") == 1
    assert "memory ran out in a step of the evaluation" in opened.text


@pytest.mark.parametrize("value", [2.0**70, 2**63 - 1, 2**62 + 2**10, 1e300])
def test_columns_that_are_no_steps_of_tensorboards(stranger: Path, capsys: Any, value: float) -> None:
    edit_config(stranger, lambda plain: plain["model"]["inference"].update(steps=value))
    words = ["--rows", "model", "--columns", "model.inference.steps", "--format", "tensorboard"]
    assert table.main([str(stranger), *words]) == 0
    assert capsys.readouterr().err == ""


def test_a_metric_that_no_font_has(stranger: Path, capsys: Any, tmp_path: Path) -> None:
    """matplotlib would warn about each of its characters."""
    edit_config(stranger, lambda plain: plain["sweep"]["table"].update(metric="\x1b[31m\u4e2d"))
    picture = tmp_path / "a.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert table.main([str(stranger), "--rows", "model", "--format", "png", "--output", str(picture)]) == 0
    assert picture.stat().st_size > 0
    assert capsys.readouterr().err == ""


def test_steps_of_an_evaluation_beyond_those(stranger: Path, capsys: Any, cache: Path) -> None:
    edit_config(stranger, lambda plain: plain["model"]["inference"].update(steps=2.0**70))
    assert_rejected(stranger, capsys, cache, "model.inference")
