"""Sweeps that are stopped, killed or run twice, with real processes for launchers and jobs."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from support.sweeps.sweeping import Launcher, Sweeping, alive, hold, holding, wait_until

from vaerun.errors import Interrupted
from vaerun.signals import ShutdownSignal
from vaerun.sweep import local

# -- other processes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["ok", "failed", "killed"])
def test_a_job_that_somebody_else_has(sweep: Sweeping, end: str) -> None:
    """The sweep waits for it and accepts its result, or takes over if the other process dies."""
    jobs = sweep.jobs(0, 1)
    folder = jobs[0].job.folder
    record = {"fingerprint": "fingerprint0", "metrics": {}, "protocol": {}, "error": None, "seed": 0}

    def other() -> None:
        with holding(folder):
            (folder / "result.json").write_text(json.dumps(record | {"status": "running"}))
            (folder / "held").touch()
            wait_until(lambda: sweep.notes("end", 1))
            time.sleep(0.3)
            if end == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            (folder / "result.json").write_text(json.dumps(record | {"status": end, "error": "theirs"}))

    launcher = Launcher(other, sweep.folder / "out")
    try:
        wait_until(lambda: (folder / "held").exists())
        outcomes = sweep.local(jobs).run(jobs)
    finally:
        launcher.end()
    assert outcomes[1].state == "finished"
    assert (outcomes[0].state, outcomes[0].reason) == {
        "ok": ("finished", ""),
        "failed": ("failed", "theirs"),
        "killed": ("finished", ""),
    }[end]
    assert sweep.began() == ([1, 0] if end == "killed" else [1])
    if end == "killed":
        assert [n["train"] for n in sweep.notes("train", 0)] == ["running"]


def test_somebody_elses_failure_is_not_of_this_configuration(sweep: Sweeping) -> None:
    """A result with another fingerprint in the job's folder is not the job's."""
    jobs = sweep.jobs(0)
    record = {"fingerprint": "another", "status": "ok", "metrics": {}, "protocol": {}, "error": None, "seed": 0}
    jobs[0].job.folder.mkdir()
    (jobs[0].job.folder / "result.json").write_text(json.dumps(record))
    sweep.does({0: "early:vaerun: error: holds a run of another configuration"})
    outcomes = sweep.local(jobs).run(jobs)
    assert (outcomes[0].state, outcomes[0].reason) == ("failed", "holds a run of another configuration")
    assert sweep.results()[0] == record


def test_a_folder_taken_between_the_look_and_the_start(sweep: Sweeping) -> None:
    """The job's process finds it locked and exits; the job is checked again."""
    jobs = sweep.jobs(0)
    with pytest.MonkeyPatch.context() as patch:
        answers: list[bool] = []

        def locked(folder: Path) -> bool:
            answers.append(original(folder))
            return False if len(answers) <= 2 else answers[-1]  # before it is queued, and before its process is started

        original = local.is_locked
        patch.setattr(local, "is_locked", locked)
        launcher = Launcher(lambda: hold(jobs[0].job.folder, 1.6), sweep.folder / "out")
        wait_until(lambda: (jobs[0].job.folder / "held").exists())
        try:
            outcomes = sweep.local(jobs).run(jobs)
        finally:
            launcher.end()
    assert outcomes[0].state == "finished"
    assert [n["end"] for n in sweep.notes("end")] == [74, 0]
    assert sweep.trained() == [0]


@pytest.mark.parametrize("fails", [False, True])
def test_two_at_once_on_one_folder(sweep: Sweeping, fails: bool) -> None:
    """Each job is run by one of them; both report its outcome."""
    sweep.folder.mkdir()
    sweep.does(dict.fromkeys(range(6), "sleep:0.1") | ({2: "silent:9"} if fails else {}))

    def call() -> int:
        outcomes = sweep.run(*range(6), slots=2)
        return sum(state == "finished" for state, _ in outcomes.values())

    both = [Launcher(call, sweep.folder / name) for name in ("one", "two")]
    try:
        codes = [launcher.wait() for launcher in both]
    finally:
        for launcher in both:
            launcher.end()
    done = [0, 1, 3, 4, 5] if fails else list(range(6))
    assert codes == [len(done)] * 2, both[0].text() + both[1].text()
    assert sorted(sweep.trained()) == done
    assert {seed: sweep.status()[seed] for seed in done} == dict.fromkeys(done, "ok")


def test_two_at_once_run_a_failing_job_once(sweep: Sweeping) -> None:
    """It had failed before for the same reason; the second sweep accepts the first one's outcome."""
    sweep.does({0: "silent:9"})
    sweep.run(0)
    first, second = sweep.jobs(0), sweep.jobs(0)  # both check before either starts
    sweep.forget()
    for jobs in (first, second):
        assert sweep.local(jobs).run(jobs)[0].state == "failed"
    assert sweep.began() == [0]


# -- signals --------------------------------------------------------------------------------------------------------


def _interruptible(sweep: Sweeping, *seeds: int, slots: int = 1) -> int:
    jobs = sweep.jobs(*seeds)
    with ShutdownSignal() as stop:
        running = sweep.local(jobs, slots, stop)
        try:
            running.run(jobs)
        except Interrupted as stopped:
            ended = [p for p in jobs if p.number in running.outcomes]
            print(json.dumps({p.job.settings.seed: running.outcomes[p.number].state for p in ended}))
            return stopped.exit_code
    return 0


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 75), ("SIGUSR1", 75)])
def test_signals_are_passed_on(sweep: Sweeping, name: str, code: int) -> None:
    sweep.folder.mkdir()
    sweep.does({0: "sleep:30", 1: "sleep:30"})
    launcher = Launcher(lambda: _interruptible(sweep, 0, 1, 2, slots=2), sweep.folder / "out")
    try:
        sweep.until("train", count=2)
        launcher.send(getattr(signal, name))
        assert launcher.wait() == code
    finally:
        launcher.end()
    # A starting process may lose SIGINT: jobs are sent SIGTERM instead.
    assert {n["signal"] for n in sweep.notes("signal")} == {"SIGTERM" if name == "SIGINT" else name}
    assert sorted(n["end"] for n in sweep.notes("end")) == [75, 75]
    assert sweep.status() == {0: "interrupted", 1: "interrupted"}
    assert json.loads(launcher.text().splitlines()[-1]) == {"0": "resumable", "1": "resumable", "2": "skipped"}
    assert sweep.began() == [0, 1] or sweep.began() == [1, 0]


def test_a_job_of_somebody_elses_when_the_sweep_is_stopped(sweep: Sweeping) -> None:
    sweep.does({0: "sleep:30"})
    jobs = sweep.jobs(0, 1, 2)
    other = Launcher(lambda: hold(jobs[1].job.folder, 30), sweep.folder / "other")
    launcher = Launcher(lambda: _interruptible(sweep, 0, 1, 2), sweep.folder / "out")
    try:
        wait_until(lambda: (jobs[1].job.folder / "held").exists())
        sweep.until("train")
        launcher.send(signal.SIGTERM)
        assert launcher.wait() == 75
        assert json.loads(launcher.text().splitlines()[-1]) == {"0": "resumable", "1": "running", "2": "skipped"}
    finally:
        launcher.end()
        other.end()
    assert sweep.began() == [0]


def test_second_interrupt_kills(sweep: Sweeping) -> None:
    sweep.folder.mkdir()
    sweep.does({0: "deaf:30"})
    launcher = Launcher(lambda: _interruptible(sweep, 0, 1), sweep.folder / "out")
    try:
        sweep.until("train")
        launcher.send(signal.SIGINT)
        sweep.until("signal")
        time.sleep(0.5)
        assert alive(sweep.notes()[0]["pid"])  # it was asked to stop, no more
        launcher.send(signal.SIGINT)
        assert launcher.wait(3) == 130
    finally:
        launcher.end()
    wait_until(lambda: not alive(sweep.notes()[0]["pid"]), 3)
    assert sweep.began() == [0]
    assert sweep.status()[0] != "failed"


@pytest.mark.parametrize("also", ["the job", "nobody else"])
def test_system_stops_everything(sweep: Sweeping, also: str) -> None:
    """A batch system may signal the jobs' processes as well: a job that stops first has not failed."""
    sweep.folder.mkdir()
    sweep.does({0: f"{'group' if also == 'the job' else 'signal'}:{int(signal.SIGTERM)}"})
    launcher = Launcher(lambda: _interruptible(sweep, 0, 1), sweep.folder / "out")
    try:
        assert launcher.wait() == 75
    finally:
        launcher.end()
    assert sweep.status() == {0: "interrupted"}
    assert json.loads(launcher.text().splitlines()[-1]) == {"0": "resumable", "1": "skipped"}


def test_launcher_dies(sweep: Sweeping) -> None:
    """The jobs notice, save and stop; the next sweep waits for them and resumes."""
    sweep.folder.mkdir()
    sweep.does({0: ["sleep:30", "ok"], 1: ["sleep:30", "ok"]})
    launcher = Launcher(lambda: _interruptible(sweep, 0, 1, 2, slots=2), sweep.folder / "out")
    try:
        sweep.until("train", count=2)
        launcher.send(signal.SIGKILL)
        assert launcher.wait() == -signal.SIGKILL
        outcomes = sweep.run(0, 1, 2)
    finally:
        launcher.end()
    assert {state for state, _ in outcomes.values()} == {"finished"}
    assert len(sweep.notes("parent")) == 2
    assert [n["end"] for n in sweep.notes("end") if n["seed"] != 2] == [75, 75, 0, 0]
    assert {n["train"] for n in sweep.notes("train")} == {None, "interrupted"}


# -- what it prints to ----------------------------------------------------------------------------------------------


def test_nobody_reads_any_more(sweep: Sweeping) -> None:
    """The terminal is closed, or `| tee` has ended: no job is killed for it."""
    sweep.folder.mkdir()
    read, write = os.pipe()
    sweep.does({0: "sleep:0.3", 1: "sleep:1"})

    def call() -> int:
        os.close(read)
        os.close(write)
        return _interruptible(sweep, 0, 1, 2, slots=2)

    launcher = Launcher(call, sweep.folder / "out", terminal=write)
    try:
        os.close(write)
        sweep.until("train", count=2)
        os.close(read)
        launcher.wait()
    finally:
        launcher.end()
    # Whether the sweep stops or continues, no job is killed or recorded as failed.
    assert set(sweep.status().values()) <= {"ok", "interrupted"}
    assert len(sweep.notes("end")) == len(sweep.notes("begin"))
