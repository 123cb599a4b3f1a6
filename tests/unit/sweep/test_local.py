"""The jobs of a sweep on one machine: how each may end, how many run concurrently, and for how long."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time

import pytest
from support.sweeps.sweeping import KILLED, Sweeping, alive

from vaerun.errors import Interrupted
from vaerun.launch.process import JobProcess
from vaerun.signals import ShutdownSignal
from vaerun.sweep import local
from vaerun.sweep.slots import Slot

# -- how a job ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("raise:it diverged", "it diverged"),
        ("bug:boom", "ValueError: boom"),
        ("refused:bring them", "the data are not there: bring them"),
        ("killed", KILLED),
        ("memory", "CUDA out of memory. Tried to allocate 20.00 GiB"),
        ("early:Traceback ...\nImportError: no module", "ImportError: no module"),
        ("silent:3", "ended with exit code 3"),
        ("unfinished", "ended with exit code 0"),
    ],
)
def test_each_ending(sweep: Sweeping, what: str, expected: str) -> None:
    sweep.does({0: what})
    ends = sweep.run(0, 1)
    assert ends[1] == ("finished", "")
    state, reason = ends[0]
    assert state == "failed"
    assert reason.startswith(expected)
    first = sweep.results()[0]
    assert (first["status"], first["error"], first["fingerprint"]) == ("failed", reason, "fingerprint0")
    assert first["seed"] == 0
    assert sweep.trained().count(1) == 1
    # It is run again, and succeeds.
    sweep.forget()
    sweep.does({})
    assert [p.state for p in sweep.jobs(0, 1)] == ["failed", "finished"]
    assert sweep.run(0)[0] == ("finished", "")
    assert sweep.status() == {0: "ok", 1: "ok"}


def test_the_reason_is_of_this_attempt(sweep: Sweeping) -> None:
    """job.log and result.json still contain the reason of an earlier attempt."""
    sweep.does({0: ["raise:the first", "early:Traceback ...\nValueError: the second", "silent:9", "killed"]})
    assert sweep.run(0)[0][1] == "the first"
    assert sweep.run(0)[0][1] == "ValueError: the second"
    assert sweep.results()[0]["error"] == "ValueError: the second"
    assert sweep.run(0)[0][1] == "ended with exit code 9"
    assert sweep.run(0)[0][1] == sweep.results()[0]["error"] == KILLED
    log = (sweep.folder / "job0" / "job.log").read_text()
    assert log.index("the first") < log.index("the second")


def test_finished_stays_finished(sweep: Sweeping) -> None:
    """A process that crashes after everything has been written keeps its result."""
    sweep.does({0: "crash:0"})
    assert sweep.run(0)[0] == ("finished", "")
    assert sweep.status() == {0: "ok"}


def test_a_killed_job_is_noticed_at_once(sweep: Sweeping) -> None:
    sweep.does({0: "sleep:60"})
    jobs = sweep.jobs(0)
    ended: list[float] = []

    def kill() -> None:
        sweep.until("train")
        ended.append(time.monotonic())
        os.kill(sweep.notes("train")[0]["pid"], signal.SIGKILL)

    helper = threading.Thread(target=kill)
    helper.start()
    outcomes = sweep.local(jobs).run(jobs)
    assert time.monotonic() - ended[0] < 1.5
    helper.join()
    assert (outcomes[0].state, outcomes[0].reason) == ("failed", KILLED)


def test_a_job_that_cannot_be_started_fails_alone(sweep: Sweeping, monkeypatch: pytest.MonkeyPatch) -> None:
    class Popen(subprocess.Popen[bytes]):
        def __init__(self, words: list[str], **options: object) -> None:
            if "job0" in words[-1]:
                raise OSError(12, "Cannot allocate memory")
            super().__init__(words, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", Popen)
    ends = sweep.run(0, 1)
    assert ends[0][0] == "failed"
    assert "Cannot allocate memory" in ends[0][1]
    assert ends[1][0] == "finished"


def test_a_bug_in_the_sweep_fails_one_job(
    sweep: Sweeping, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And leaves no process behind."""

    class Odd(JobProcess):
        raised = False

        def wait(self, timeout: float | None = None) -> int | None:
            if self.job.settings.seed == 0 and not Odd.raised:
                Odd.raised = True
                sweep.until("train", 0)
                raise ZeroDivisionError("of ours")
            return super().wait(timeout)

    monkeypatch.setattr(local, "JobProcess", Odd)
    sweep.does({0: "sleep:30"})
    ends = sweep.run(0, 1)
    assert ends == {0: ("failed", "ZeroDivisionError: of ours"), 1: ("finished", "")}
    assert "Traceback" in capsys.readouterr().err
    assert not alive(sweep.notes("train", 0)[0]["pid"])


def test_a_folder_that_cannot_be_written_fails_alone(sweep: Sweeping) -> None:
    jobs = sweep.jobs(0, 1, 2)
    (sweep.folder / "job0").write_text("a file")
    (sweep.folder / "job1").mkdir()
    (sweep.folder / "job1" / ".hydra").write_text("no folder")  # where record_failure would write the configuration
    sweep.does({1: "silent:9"})
    outcomes = sweep.local(jobs).run(jobs)
    assert [outcomes[i].state for i in range(3)] == ["failed", "failed", "finished"]
    assert outcomes[0].reason.startswith(str(sweep.folder / "job0"))
    assert "exit code 9" in outcomes[1].reason


def test_a_record_that_is_torn_fails_alone(sweep: Sweeping) -> None:
    """result.json cannot be read once the job has failed."""
    jobs = sweep.jobs(0, 1)
    sweep.does({0: "sleep:30"})

    def tear() -> None:
        sweep.until("train", 0)
        (sweep.folder / "job0" / "result.json").write_text("{")
        os.kill(sweep.notes("train", 0)[0]["pid"], signal.SIGKILL)

    helper = threading.Thread(target=tear)
    helper.start()
    outcomes = sweep.local(jobs).run(jobs)
    helper.join()
    assert [outcomes[i].state for i in range(2)] == ["failed", "finished"]
    assert "result.json cannot be read" in outcomes[0].reason


def test_hidden_characters_in_a_reason(sweep: Sweeping, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.does({0: "early:\x1b[31mred\x1b[0m\tand \u202eback\x00 \x07bell \u00e9"})
    assert sweep.run(0)[0][0] == "failed"
    err = capsys.readouterr().err
    assert "red" in err
    assert "bell \u00e9" in err
    assert all(c.isprintable() for c in err.replace("\n", ""))


# -- how many at once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_never_more_at_once(sweep: Sweeping, slots: int) -> None:
    sweep.does(dict.fromkeys(range(5), "sleep:0.15"))
    assert {state for state, _ in sweep.run(*range(5), slots=slots).values()} == {"finished"}
    running, maximum = 0, 0
    for note in sweep.notes():
        running += ("begin" in note) - ("end" in note)
        maximum = max(maximum, running)
    assert maximum == slots
    assert sweep.trained() == sorted(sweep.trained()) or slots > 1
    assert sorted(sweep.trained()) == list(range(5))


def test_environment_of_a_job(sweep: Sweeping, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = sweep.jobs(0, 1)
    sweep.does({0: "sleep:0.3", 1: "sleep:0.3"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setattr("tempfile.tempdir", str(sweep.folder))
    sweep.local(jobs, [Slot(3, "4"), Slot(2)]).run(jobs)
    environments = {(n["threads"], n["gpu"]) for n in sweep.notes("begin")}
    assert environments == {("3", "4"), ("2", "7")}


# -- time -----------------------------------------------------------------------------------------------------------


def test_out_of_time(sweep: Sweeping) -> None:
    sweep.does({0: ["sleep:30", "ok"], 2: "deaf:30"})
    ends = sweep.run(0, 1, 2, slots=3, job_minutes=1.5 / 60)
    assert ends[1] == ("finished", "")
    for seed in (0, 2):
        state, reason = ends[seed]
        assert state == "failed"
        assert reason.startswith("out of time (sweep.job_minutes=0.025)")
    assert sweep.status() == {0: "failed", 1: "ok", 2: "failed"}
    saved, deaf = sweep.notes("end", 0), sweep.notes(seed=2)
    assert [n["end"] for n in saved] == [75]  # stopped and saved on request
    assert "signal" in deaf[-1]  # was asked to stop, then killed
    assert not alive(deaf[0]["pid"])
    assert 1 < deaf[-1]["time"] - deaf[0]["time"] < 5
    assert sweep.run(0, job_minutes=10) == {0: ("finished", "")}
    assert sweep.notes("train", 0)[-1]["train"] == "failed"


def test_fail_fast(sweep: Sweeping) -> None:
    """Running jobs save and stop; no other is started."""
    sweep.does({0: "sleep:30", 1: "raise@train2:oh"})
    ends = sweep.run(0, 1, 2, 3, slots=2, fail_fast=True)
    assert ends == {0: ("resumable", ""), 1: ("failed", "oh"), 2: ("skipped", ""), 3: ("skipped", "")}
    assert sorted(sweep.began()) == [0, 1]
    assert sweep.status() == {0: "interrupted", 1: "failed"}
    assert not (sweep.folder / "job2").exists()


def test_a_job_stopped_before_it_could_listen(sweep: Sweeping) -> None:
    """A new process cannot handle signals for a moment: one that ends it then has nothing to save."""
    sweep.does({0: "unready:30", 1: "raise@begin2:oh"})
    assert sweep.run(0, 1, slots=2, fail_fast=True) == {0: ("new", ""), 1: ("failed", "oh")}
    assert 0 not in sweep.status()


def test_a_job_begun_while_the_sweep_ends(sweep: Sweeping, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal between the check and the start of the process is forwarded all the same."""
    sweep.does({0: "sleep:30"})
    stop = ShutdownSignal()
    running = sweep.local(jobs := sweep.jobs(0), stop=stop)

    class Late(JobProcess):
        def __init__(self, *words: object, **options: object) -> None:
            super().__init__(*words, **options)  # type: ignore[arg-type]
            sweep.until("train")
            stop.signum = running.forwarded = signal.SIGTERM

    monkeypatch.setattr(local, "JobProcess", Late)
    with pytest.raises(Interrupted):
        running.run(jobs)
    assert running.outcomes[0].state == "resumable"
    assert [n["signal"] for n in sweep.notes("signal")] == ["SIGTERM"]


def test_a_job_that_runs_out_of_time_while_the_sweep_ends(sweep: Sweeping) -> None:
    """It is saving by then: it has not failed."""
    sweep.does({0: "slow:30", 1: "raise@train2:oh"})
    ends = sweep.run(0, 1, slots=2, fail_fast=True, job_minutes=1 / 60)
    assert ends == {0: ("resumable", ""), 1: ("failed", "oh")}
    assert [n["signal"] for n in sweep.notes("signal")] == ["SIGTERM"]
