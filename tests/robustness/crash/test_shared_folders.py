"""Concurrent processes on the same files, and unusual directory names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from robustness.signals.test_stopping import start, wait_for_checkpoint
from support.runs.commands import SHORT, assert_same_scalars, records, tensorboard

from vaerun.cli import table

PREPARE = """
import sys, time
from pathlib import Path
import numpy as np
from vaerun.data.arrays import Arrays
from vaerun.data.cache import load_arrays

def source(scratch):
    with open(sys.argv[1], "a") as calls:
        calls.write("called\\n")
    (scratch / "raw").write_text("raw")
    time.sleep(0.3)
    images = np.random.RandomState(0).randint(0, 256, (50, 1, 8, 8)).astype(np.uint8)
    return Arrays(images, None, images[:5], None, split="all")

arrays = load_arrays("own", source)
print(arrays.sha256, int(np.asarray(arrays.train_images, dtype=np.int64).sum()))
"""


pytestmark = pytest.mark.usefixtures("command_environment")


def test_ten_processes_prepare_the_same_data(tmp_path: Path, env: dict[str, str]) -> None:
    calls, cache = tmp_path / "calls", tmp_path / "cache"
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", PREPARE, str(calls)]
    ten = [subprocess.Popen(command, env=env | {"VAERUN_CACHE": str(cache)}, **pipes) for _ in range(10)]
    outputs = [process.communicate(timeout=120) for process in ten]
    assert [err for _, err in outputs] == [""] * 10
    assert len({out for out, _ in outputs}) == 1
    assert calls.read_text() == "called\n"
    assert len([p for p in (cache / "prepared").iterdir() if p.suffix != ".lock"]) == 1


@pytest.mark.slow
def test_a_table_while_a_run_writes(tmp_path: Path, env: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    process, tables = start(tmp_path / "run", env), 0
    wait_for_checkpoint(tmp_path / "run", process)
    while process.poll() is None:
        assert table.main([str(tmp_path), "--list", "--format", "csv"]) == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        assert len(shown.out.splitlines()) == 2
        json.loads((tmp_path / "run" / "result.json").read_text())
        tables += 1
    assert (process.returncode, process.communicate()[0] != "") == (0, True)
    assert tables > 5


@pytest.mark.parametrize(
    "name",
    [
        "with spaces/größe/模型/модель",
        pytest.param("/".join(["x" * 100] * 3), marks=pytest.mark.slow, id="300 characters"),
        pytest.param("*[a]?/{b}/'quoted'", marks=pytest.mark.slow, id="patterns and quotes"),
    ],
)
def test_names_of_folders(
    name: str, tmp_path: Path, here: Callable[..., tuple[int, str, str]], evaluate: Any, capsys: Any
) -> None:
    folder = tmp_path / name
    quoted = str(folder).replace("'", "\\'")
    words = ["model=vae", *SHORT, f"output_dir='{quoted}'"]
    code, out, err = here(*words)
    assert code == 0, err
    assert f"recorded in {folder}" in out
    assert_same_scalars(tensorboard(folder), records(folder))
    assert here(*words)[1].startswith(f"already finished: {folder}\n")
    code, out, err = evaluate(f"run={folder}", "evaluation.samples=10")
    assert code == 0, err
    assert table.main([str(tmp_path), "--list"]) == 0
    assert "vae" in capsys.readouterr().out


def test_a_name_that_is_too_long(tmp_path: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = here("model=vae", *SHORT, f"output_dir={tmp_path / ('x' * 300)}")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "File name too long; choose another output_dir" in err
    assert list(tmp_path.iterdir()) == []


def test_data_in_a_folder_with_such_a_name(
    tmp_path: Path, here: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "дані 数据 [1]" / ("y" * 200)
    folder.mkdir(parents=True)
    monkeypatch.setenv("VAERUN_CACHE", str(folder / "cache"))
    images = np.random.RandomState(0).randint(0, 256, (200, 1, 4, 4)).astype(np.uint8)
    np.savez(folder / "own.npz", train_images=images)
    words = ["data=npz", f"data.path='{folder / 'own.npz'}'", "model=vae", *SHORT, "trainer.batch_size=32"]
    code, _, err = here(*words, f"output_dir='{folder / 'run'}'")
    assert code == 0, err
