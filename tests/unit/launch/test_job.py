"""A job handed to its process through a file, and exit codes in both directions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from support.sweeps.sweeping import settings

from vaerun.errors import InputError, Interrupted, RunError
from vaerun.launch.job import Job, JobState, read_job, worker_exit_code, write_job
from vaerun.storage.run_dir import RunDirLocked


def test_the_file_preserves_the_job(tmp_path: Path) -> None:
    job = Job(replace(settings(), seed=3), tmp_path, ["seed=3"], "hydra: {}")
    write_job(job, tmp_path / "job.json")
    assert read_job(json.loads((tmp_path / "job.json").read_text())) == job


def test_a_label_becomes_a_prefix(tmp_path: Path) -> None:
    assert Job(settings(), tmp_path, []).prefix == ""
    assert Job(settings(), tmp_path, [], label="seed 1").prefix == "seed 1: "


def test_states_read_as_words() -> None:
    assert f"{JobState.RESUMABLE}" == "resumable"


def test_exit_codes_of_a_worker() -> None:
    errors = [None, RunError("x"), InputError("x"), RunDirLocked("x"), Interrupted(15), Interrupted(2), KeyError("x")]
    assert [worker_exit_code(error) for error in errors] == [0, 1, 2, 74, 75, 130, 1]
