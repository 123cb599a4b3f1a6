"""Hydra's own settings that write into a run directory: they work, or are refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.runs.commands import SHORT

pytestmark = pytest.mark.usefixtures("command_environment", "quick_commands")

Here = Callable[..., tuple[int, str, str]]


def test_logging_and_folders_of_hydra(here: Here, tmp_path: Path) -> None:
    """The log is opened at the first message, and the configuration is vaerun's."""
    words = ["model=vae", *SHORT]
    code, _, err = here(*words, "hydra/job_logging=default", "hydra.output_subdir=.hydra", "hydra.run.dir=run")
    assert code == 0, err
    assert (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "vaerun.log").exists()
    assert (tmp_path / "run" / ".hydra" / "config.yaml").exists()


def test_a_log_of_hydra_makes_no_folder_foreign(here: Here, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "vaerun.log").write_text("a message of a library\n")
    assert here("model=vae", *SHORT, "--check", "output_dir=run")[0] == 0


@pytest.mark.parametrize("sweep", [[], ["-m"]])
@pytest.mark.parametrize(
    "word", ["hydra/job_logging=default", "hydra/hydra_logging=default", "hydra.run.dir=x", "hydra.sweep.dir=y"]
)
def test_a_check_leaves_nothing(here: Here, tmp_path: Path, word: str, sweep: list[str]) -> None:
    assert here(*sweep, "--check", "model=vae", *SHORT, word)[0] == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sweep", [[], ["-m"]])
@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("hydra.output_subdir=conf", "hydra.output_subdir=conf: a run's configuration is always written to .hydra"),
        ("hydra.mode=MULTIRUN", "'hydra.mode=MULTIRUN': leave it out, and write -m for a sweep"),
    ],
)
def test_refused_before_anything_is_written(here: Here, tmp_path: Path, word: str, says: str, sweep: list[str]) -> None:
    code, out, err = here(*sweep, "model=vae", *SHORT, word, "output_dir=run")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"vaerun: error: {says}")
    assert list(tmp_path.iterdir()) == []
