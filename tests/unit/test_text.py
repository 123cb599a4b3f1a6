"""Huge numbers are printed in short form in every table, others with all digits."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from support.runs.adversarial_runs import Command
from support.runs.evaluating import SMALL, result
from support.sweeps.records import compare
from support.sweeps.records import run as write_run

from vaerun.cli.table import main
from vaerun.report.chart import to_png
from vaerun.report.table_spec import TableSpec
from vaerun.text import format_fixed, print_output

WAYS = [["--list"], ["--list", "--format", "csv"], ["--rows", "model"], ["--rows", "model", "--format", "csv"],
        ["--rows", "model", "--format", "tex"], ["--rows", "model", "--paired"]]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [
        (12.3, 2, "", "12.30"),
        (-12.345, 1, "", "-12.3"),
        (0.25, 4, "+", "+0.2500"),
        (123456789.125, 2, "", "123456789.12"),
        (1e30, 2, "", "1e+30"),
        (-1e30, 4, "", "-1e+30"),
        (3.4149598e12, 2, "+", "+3.41496e+12"),
        (float("nan"), 2, "", "nan"),
        (float("inf"), 2, "", "inf"),
    ],
)
def test_numbers(value: float, digits: int, sign: str, text: str) -> None:
    assert format_fixed(value, digits, sign) == text


def comparable(folder: Path, values: dict[str, float]) -> Path:
    """Runs of two seeds of each model."""
    for model, value in values.items():
        for seed in (0, 1):
            write_run(folder, model, 4, seed, value)
    return folder


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
@pytest.mark.parametrize("huge", [1e30, -1e30], ids=str)
def test_a_huge_metric(tmp_path: Path, capsys: Any, way: list[str], huge: float) -> None:
    assert main([str(comparable(tmp_path, {"vae": huge, "vae_hf": -12.345})), *way]) == 0
    out = capsys.readouterr().out
    assert "1e+30" in out
    assert "12.3" in out
    assert not re.search(r"\d{12}", out)


def test_a_picture_of_huge_numbers(tmp_path: Path) -> None:
    assert to_png([compare(comparable(tmp_path, {"vae": 1e30, "vae_hf": 2e30}), TableSpec(rows="model"))]).startswith(
        b"\x89PNG"
    )


@pytest.mark.usefixtures("command_environment")
def test_a_runs_own_table(here: Command, run: Path) -> None:
    record = result(run)
    record["metrics"] |= {"test/elbo": -1e30, "test/elbo_se": 2e30}
    (run / "result.json").write_text(json.dumps(record))
    code, out, _ = here("model=vae", *SMALL, f"output_dir={run}")
    assert code == 0
    assert "-1e+30 ± 2e+30" in out


def test_a_closed_pipe_is_ignored() -> None:
    """A run whose warnings nobody reads any more goes on, as after `vaerun ... 2>&1 | head`."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        os.close(reading)
        for _ in range(3):
            print_output("a warning", stream)
