"""One job's process: its job file and environment, and its outcome by exit code, result.json and log."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from support.sweeps.sweeping import KILLED, Launcher, Sweeping, hold, wait_until

from vaerun.launch import process as module
from vaerun.launch.job import describe_exit
from vaerun.launch.process import Attempt, JobProcess, last_error_line, record_failure, worker_environment

OLD, RUNNING, OTHER = (
    {"status": "running", "ended": 1},
    {"status": "running"},
    {"status": "ok", "fingerprint": "another"},
)
STOPPED, BROKEN, DONE = {"status": "interrupted"}, {"status": "failed", "error": "its own"}, {"status": "ok"}


@pytest.mark.parametrize(
    ("code", "record", "sent", "received", "reason", "state", "expected"),
    [
        (0, DONE, [], None, "", "finished", ""),
        (-11, DONE, [15], 15, "late", "finished", ""),
        (0, OTHER, [], None, "", "failed", "ended with exit code 0 and no result"),
        (74, DONE, [], None, "", "running", ""),
        (74, None, [15], None, "late", "running", ""),
        (75, STOPPED, [15], None, "", "resumable", ""),
        (75, STOPPED, [], 15, "", "resumable", ""),
        (75, STOPPED, [], None, "", "failed", "the last words"),  # stopped by somebody else
        (75, STOPPED, [15], None, "late", "failed", "late"),
        (130, RUNNING, [2], None, "", "resumable", ""),
        (130, RUNNING, [], None, "", "failed", "the last words"),
        (-15, RUNNING, [15], None, "", "resumable", ""),
        (-15, RUNNING, [], 15, "", "resumable", ""),
        (-15, RUNNING, [2], None, "", "failed", "killed by SIGTERM"),
        (1, STOPPED, [15], None, "", "resumable", ""),  # of several processes
        (1, OLD, [15], None, "", "resumable", ""),  # asked before it had begun
        (1, None, [15], None, "", "new", ""),
        (1, BROKEN, [15], None, "", "failed", "its own"),
        (1, BROKEN, [], None, "", "failed", "its own"),
        (2, BROKEN, [], None, "", "failed", "the last words"),
        (1, OLD, [], None, "", "failed", "the last words"),
        (-9, RUNNING, [], None, "", "failed", KILLED),
        (-9, RUNNING, [15], None, "late", "failed", "late"),
        (-9, RUNNING, [15, 9], None, "", "resumable", ""),  # it ignored the signal
    ],
)
def test_verdicts(
    sweep: Sweeping,
    code: int,
    record: dict[str, Any] | None,
    sent: list[int],
    received: int | None,
    reason: str,
    state: str,
    expected: str,
) -> None:
    """The outcome of a run from its exit code, its result.json and the signals sent."""
    (planned,) = sweep.jobs(0)
    base = {"fingerprint": "fingerprint0", "metrics": {}, "protocol": {}, "error": None, "seed": 0}
    child = JobProcess.__new__(JobProcess)
    attempt = Attempt.__new__(Attempt)
    attempt.job, attempt.log_start = planned.job, 5
    attempt.previous_result = base | OLD if record is OLD else None
    child.job, child.sent, child.attempts = planned.job, set(sent), [attempt]
    planned.job.folder.mkdir()
    (planned.job.folder / "job.log").write_text("past\nthe last words\n")
    path = planned.job.folder / "result.json"
    if record is not None:
        path.write_text(json.dumps(base | record))
    outcome = child.outcome(code, received, reason)
    assert (outcome.state, outcome.reason) == (state, expected)
    after = json.loads(path.read_text()) if path.exists() else None
    if state == "failed" and record is not OTHER:
        assert after is not None
        assert (after["status"], after["error"]) == ("failed", expected)
    else:
        assert after == (None if record is None else base | record)


# -- recording a failure --------------------------------------------------------------------------------------------


def test_settling_leaves_others_alone(sweep: Sweeping) -> None:
    (planned,) = sweep.jobs(0)
    folder = planned.job.folder
    folder.mkdir()
    record = {"fingerprint": "another", "status": "running", "metrics": {}, "protocol": {}, "error": None}
    for result in (record, record | {"fingerprint": "fingerprint0", "status": "ok"}):
        (folder / "result.json").write_text(json.dumps(result))
        assert record_failure(planned.job, "gone") == "gone"
        assert json.loads((folder / "result.json").read_text()) == result
    (folder / "result.json").write_text(json.dumps(record | {"fingerprint": "fingerprint0"}))
    launcher = Launcher(lambda: hold(folder, 30), sweep.folder / "out")
    try:
        wait_until(lambda: (folder / "held").exists())
        assert record_failure(planned.job, "gone").startswith("gone (another run is using")
        assert json.loads((folder / "result.json").read_text())["status"] == "running"
    finally:
        launcher.end()
    assert record_failure(planned.job, "why") == "why"
    assert json.loads((folder / "result.json").read_text())["error"] == "why"


def test_settling_a_run_without_a_record(sweep: Sweeping) -> None:
    (planned,) = sweep.jobs(0)
    assert record_failure(planned.job, "why") == "why"
    record = sweep.results()[0]
    assert record["command"] == ["vaerun", "seed=0"]
    assert (record["model"], record["data"], record["estimator"]) == ("vae", "digits", "elbo")
    config = (planned.job.folder / ".hydra" / "config.yaml").read_text()
    assert "latent_dim: 2" in config


def test_last_words(tmp_path: Path) -> None:
    assert last_error_line(tmp_path) is None
    log = tmp_path / "job.log"
    log.write_bytes(b"\n  \n")
    assert last_error_line(tmp_path, 100) is None
    assert last_error_line(tmp_path) is None
    log.write_bytes(b"x" * 10000 + b"\nvaerun: error: this\nepoch 3 \xff\n\n")
    assert last_error_line(tmp_path) == "this"
    assert last_error_line(tmp_path, 10000 + 21) == "epoch 3 \ufffd"
    log.write_bytes(b"Traceback\nValueError: that \xff\n\n")
    assert last_error_line(tmp_path) == "ValueError: that \ufffd"


def test_endings_in_words() -> None:
    assert describe_exit(0) == "ended with exit code 0 and no result"
    assert describe_exit(-9) == KILLED
    assert describe_exit(-6) == "killed by SIGABRT"
    assert describe_exit(-200) == "killed by signal 200"
    assert describe_exit(3) == "ended with exit code 3"


# -- its process ---------------------------------------------------------------------------------------------------


def test_child_has_a_session_of_its_own(sweep: Sweeping) -> None:
    """Ctrl-C in a terminal reaches the entire foreground group: the jobs get it from the sweep only, once."""
    sweep.does({0: "sleep:30"})
    (planned,) = sweep.jobs(0)
    process = JobProcess([planned.job])
    try:
        assert os.getsid(process.process.pid) == process.process.pid
        assert process.wait(0.05) is None
        sweep.until("train")
        process.signal(signal.SIGTERM)
        assert process.wait(10) == 75
        process.signal(signal.SIGTERM)  # it has ended: nothing
        assert process.process.stdin is not None
        assert process.process.stdin.closed
    finally:
        process.kill()
    assert json.loads((planned.job.folder / ".job.json").read_text())["words"] == ["seed=0"]


def test_a_chosen_folder_is_kept(sweep: Sweeping) -> None:
    """trainer.resume=never has chosen the folder by then: the run must not choose another one."""
    (planned,) = sweep.jobs(0, resume="never")
    process = JobProcess([planned.job])
    code = process.wait(10)
    assert code == 0
    job_file = json.loads((planned.job.folder / ".job.json").read_text())
    assert job_file["settings"]["trainer"]["resume"] == "auto"
    assert job_file["folder"] == str(planned.job.folder)
    assert planned.job.settings.trainer.resume == "never"


def test_what_children_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/somewhere", ""]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/elsewhere"])
    variables = worker_environment({"OMP_NUM_THREADS": "3"})
    root = str(Path(module.__file__).parents[2])
    assert variables["PYTHONPATH"].split(os.pathsep) == [root, "/somewhere"]
    assert variables["OMP_NUM_THREADS"] == "3"
    assert variables["PYTHONSAFEPATH"] == "1"
    monkeypatch.setattr("sys.path", ["", "/elsewhere"])
    assert worker_environment()["PYTHONPATH"].split(os.pathsep) == [root, str(tmp_path), "/somewhere"]
