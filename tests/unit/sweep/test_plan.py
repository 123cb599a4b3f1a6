"""A sweep's jobs before they run: their states, duplicates, and sweep.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.sweeps.sweeping import Launcher, Sweeping, holding, settings

from vaerun.errors import InputError, RunError
from vaerun.launch.job import Job
from vaerun.sweep import plan as module
from vaerun.sweep.plan import JobChecker, PlannedJob, job_state, label_jobs, read_plan, unique_jobs, write_plan

pytestmark = pytest.mark.usefixtures("command_environment")


def result(folder: Path, status: str, fingerprint: str = "fingerprint0") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {"fingerprint": fingerprint, "status": status, "metrics": {}, "protocol": {}}
    (folder / "result.json").write_text(json.dumps(record))


def test_where_a_job_stands(sweep: Sweeping) -> None:
    (planned,) = sweep.jobs(0)
    job = planned.job
    assert job_state(job) == "new"
    job.folder.mkdir()
    assert job_state(job) == "new"
    states = {"ok": "finished", "failed": "failed", "running": "resumable", "interrupted": "resumable"}
    for status, state in states.items():
        result(job.folder, status)
        assert job_state(job) == state
    result(job.folder, "ok", "another")
    assert job_state(job) != "finished"
    result(job.folder, "ok")
    with holding(job.folder):
        assert job_state(job) == "running"
    assert job_state(job) == "finished"
    (job.folder / "result.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        job_state(job)


def points(tmp_path: Path, *folders: str, fingerprint: str = "same") -> list[PlannedJob]:
    jobs = []
    for number, name in enumerate(folders):
        job = Job(replace(settings(), seed=number), tmp_path / name, [f"word={number}"], None, fingerprint)
        jobs.append(PlannedJob(job, number, 1))
    return jobs


def test_points_that_are_one_run(tmp_path: Path) -> None:
    jobs = unique_jobs(points(tmp_path, "a", "b", "a", "c", "b"))
    assert [p.number for p in jobs] == [0, 1, 3]


def test_different_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    """hydra.sweep.subdir may be set to a name that all jobs share: none is dropped silently."""
    first, second = points(tmp_path, "a", "a")
    second.job = replace(second.job, fingerprint="another")
    with pytest.raises(InputError, match=r"word=1"):
        unique_jobs([first, second])


def test_labels(tmp_path: Path) -> None:
    jobs = points(tmp_path, "a", "b", "c")
    words = [["model=vae", "x=1", "seed=0"], ["model=vae", "x=1", "seed=1"], ["model=vlae", "x=1", "seed=0"]]
    for planned, overrides in zip(jobs, words, strict=True):
        planned.job = replace(planned.job, overrides=overrides)
    label_jobs(jobs)
    assert [p.label for p in jobs] == ["model=vae seed=0", "model=vae seed=1", "model=vlae seed=0"]
    label_jobs(jobs[:1])
    assert jobs[0].label == "model=vae x=1 seed=0"
    jobs[0].job = replace(jobs[0].job, overrides=[])
    label_jobs(jobs[:1])
    assert jobs[0].label == "the defaults"


# -- sweep.json -----------------------------------------------------------------------------------------------------


def folders(path: Path) -> list[str]:
    plan = read_plan(path)
    assert plan is not None
    return [entry["folder"] for entry in plan["jobs"]]


def test_the_plan_keeps_all_that_was_planned(tmp_path: Path) -> None:
    base = tmp_path / "deep" / "sweep"
    write_plan(base, ["vaerun", "-m", "seed=0,1"], points(base, "a", "b"))
    later = [*points(base, "b", fingerprint="new"), *points(tmp_path, "elsewhere")]
    later[0].total_steps = 7
    later[0].job = replace(later[0].job, settings=replace(later[0].job.settings, output_dir=str(base)))
    write_plan(base, ["vaerun", "-m", "seed=1,2"], later)
    assert folders(base) == ["a", "b", str(tmp_path / "elsewhere")]
    plan = read_plan(base)
    assert plan is not None
    assert (plan["schema"], plan["command"]) == (1, ["vaerun", "-m", "seed=1,2"])
    assert [e["fingerprint"] for e in plan["jobs"]] == ["same", "new", "same"]
    assert (plan["jobs"][1]["total_steps"], plan["jobs"][1]["words"]) == (7, ["word=0"])
    assert plan["jobs"][0]["config"]["model"]["latent_dim"] == 2
    assert plan["jobs"][1]["config"]["output_dir"] is None
    assert [p.name for p in base.iterdir() if p.name.endswith(".tmp")] == []


def test_two_write_the_plan_at_once(tmp_path: Path) -> None:
    """Each adds its jobs to what the others wrote."""
    base = tmp_path / "sweep"

    def call(name: str) -> None:
        for i in range(8):
            write_plan(base, [name], points(base, f"{name}{i}"))

    both = [Launcher(lambda name=name: call(name), tmp_path / f"out-{name}") for name in ("one", "two", "three")]
    try:
        assert [launcher.wait() for launcher in both] == [0, 0, 0], [launcher.text() for launcher in both]
    finally:
        for launcher in both:
            launcher.end()
    assert sorted(folders(base)) == sorted(f"{name}{i}" for name in ("one", "two", "three") for i in range(8))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "cannot be read"),
        ("[]", "is not a sweep plan"),
        ('{"jobs": {}}', "is not a sweep plan"),
        ('{"jobs": [{"fingerprint": ""}]}', "is not a sweep plan"),
        ('{"jobs": [{"folder": 3}]}', "is not a sweep plan"),
        ("\xff", "cannot be read"),
    ],
)
def test_a_plan_that_is_none(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "sweep.json"
    file.write_bytes(text.encode("latin1"))
    with pytest.raises(InputError, match=why):
        read_plan(tmp_path)
    with pytest.raises(InputError, match=why):
        write_plan(tmp_path, ["vaerun"], points(tmp_path, "a"))
    assert file.read_bytes() == text.encode("latin1")  # left as it is


@pytest.mark.parametrize("entry", [{}, {"words": [], "config": {}}, {"words": 3, "config": []}])
def test_a_plan_with_less_in_it(tmp_path: Path, entry: dict[str, Any]) -> None:
    """Edited by hand, or of an earlier version: read, or rejected with one line."""
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": [{"folder": "b", **entry}]}))
    try:
        write_plan(tmp_path, ["vaerun"], points(tmp_path, "a"))
    except InputError:
        return
    assert folders(tmp_path) == ["b", "a"]


def test_no_plan(tmp_path: Path) -> None:
    assert read_plan(tmp_path) is None


@pytest.mark.parametrize("place", ["sweep.json", "", "below"])
def test_a_plan_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    """One line, like every error that the user can act on."""
    base = tmp_path / "sweep"
    if place == "sweep.json":
        (base / place).mkdir(parents=True)
    else:
        base.write_text("a file")
    with pytest.raises((InputError, RunError)):
        write_plan(base / place if place == "below" else base, ["vaerun"], points(base, "a"))


# -- checking -------------------------------------------------------------------------------------------------------


def test_checking_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Any] = []
    original = module.build_data

    def build(data: Any, device: torch.device) -> Any:
        reads.append((data.validation, device.type))
        return original(data, device)

    monkeypatch.setattr(module, "build_data", build)
    checker = JobChecker()
    base = settings()
    jobs = [checker.check(replace(base, seed=s), tmp_path / f"{s}", [f"seed={s}"], "yaml", s) for s in (0, 1)]
    assert [p.number for p in jobs] == [0, 1]
    assert {p.state for p in jobs} == {"new"}
    assert jobs[0].previous_result is None
    assert (jobs[0].job.overrides, jobs[0].job.hydra) == (["seed=0"], "yaml")
    assert len({p.job.fingerprint for p in jobs}) == 2
    images = len(checker.data(base.data).train)
    assert jobs[0].total_steps == base.trainer.epochs * -(-images // base.trainer.batch_size)
    assert reads == [(base.data.validation, "cpu")]  # once for all jobs of the same data
    other = replace(base, data=replace(base.data, validation=base.data.validation + 1))
    third = checker.check(other, tmp_path / "other", [], None, 2)
    assert [r[0] for r in reads] == [base.data.validation, base.data.validation + 1]
    assert third.job.fingerprint not in {p.job.fingerprint for p in jobs}
    assert not list(tmp_path.iterdir())  # checking writes nothing

    result(tmp_path / "0", "interrupted", jobs[0].job.fingerprint)
    again = checker.check(base, tmp_path / "0", [], None, 0)
    assert again.state == "resumable"
    assert again.previous_result is not None
    assert again.previous_result["status"] == "interrupted"
    with pytest.raises(InputError, match="holds a run of another configuration"):
        checker.check(replace(base, seed=5), tmp_path / "0", [], None, 0)
    never = replace(base, trainer=replace(base.trainer, resume="never"))
    assert checker.check(never, tmp_path / "0", [], None, 0).job.folder == tmp_path / "0-2"
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "mine.txt").touch()
    with pytest.raises(InputError, match="is not empty and holds no vaerun run"):
        checker.check(replace(base, seed=1), tmp_path / "1", [], None, 0)


def test_a_device_is_asked_for_where_the_jobs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    base = replace(settings(), trainer=replace(settings().trainer, device="cuda"))
    with pytest.raises(InputError, match="cuda"):
        JobChecker().check(base, tmp_path / "a", [], None, 0)
    assert JobChecker(local=False).check(base, tmp_path / "a", [], None, 0).state == "new"


def test_jobs_that_differ_in_what_changes_no_result(tmp_path: Path) -> None:
    """The same fingerprint: the same run."""
    base = settings()
    incidental = replace(
        base,
        trainer=replace(base.trainer, checkpoint_seconds=3.0, processes=2, log_every=7),
        sweep=replace(base.sweep, jobs=3, job_minutes=1.0, fail_fast=True),
        output_dir="elsewhere",
    )
    checker = JobChecker()
    one, two = (checker.check(s, tmp_path / "a", [], None, 0).job.fingerprint for s in (base, incidental))
    assert one == two
    third = replace(base, trainer=replace(base.trainer, learning_rate=0.5))
    assert checker.check(third, tmp_path / "a", [], None, 0).job.fingerprint != one
