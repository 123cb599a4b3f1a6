"""How many jobs run concurrently: cores divided among them, one GPU per slot, slots shared between sweeps."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from support.sweeps.sweeping import Launcher, wait_until

from vaerun.config.schema import SweepSettings
from vaerun.errors import InputError
from vaerun.sweep import slots as module
from vaerun.sweep.slots import THREAD_VARIABLES, Slot, acquire_slot, cpu_count, gpu_names, make_slots


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sixteen cores, no GPU, and no environment variable about either."""
    monkeypatch.setattr(module, "cpu_count", lambda: 16)
    for name in (*THREAD_VARIABLES, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    with_gpus(monkeypatch, 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def plain(slots: list[Slot]) -> list[tuple[int, str | None, int]]:
    return [(slot.threads, slot.gpu, slot.index) for slot in slots]


def test_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain(make_slots(SweepSettings(), {"auto"})) == [(16, None, 0)]
    assert [s.threads for s in make_slots(SweepSettings(jobs=3), {"auto"})] == [5, 5, 5]
    assert [s.threads for s in make_slots(SweepSettings(jobs=40), {"cpu"})] == [1] * 40
    assert [s.threads for s in make_slots(SweepSettings(jobs=2), {"cpu"}, 4)] == [2, 2]
    assert [s.threads for s in make_slots(SweepSettings(jobs_per_gpu=3), {"auto"})] == [16]
    assert len({s.index for s in make_slots(SweepSettings(jobs=3), {"auto"})}) == 3


@pytest.mark.parametrize(("limit", "threads"), [("3", 3), ("1", 1), ("64", 8), ("", 8), ("0", 8), ("4,2", 8)])
def test_fewer_threads_where_asked_for(monkeypatch: pytest.MonkeyPatch, limit: str, threads: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert [s.threads for s in make_slots(SweepSettings(jobs=2), {"cpu"})] == [threads, threads]


def test_a_slot_to_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2)
    assert plain(make_slots(SweepSettings(), {"auto"})) == [(8, "0", 0), (8, "1", 0)]
    assert plain(make_slots(SweepSettings(), {"cpu", "cuda"})) == [(8, "0", 0), (8, "1", 0)]
    assert plain(make_slots(SweepSettings(), {"cpu"})) == [(16, None, 0)]
    # One job on each GPU first, then the second ones.
    both = make_slots(SweepSettings(jobs_per_gpu=2), {"auto"})
    assert plain(both) == [(4, "0", 0), (4, "1", 0), (4, "0", 1), (4, "1", 1)]
    assert plain(make_slots(SweepSettings(jobs_per_gpu=2, jobs=3), {"auto"})) == [(5, "0", 0), (5, "1", 0), (5, "0", 1)]
    assert plain(make_slots(SweepSettings(jobs=8), {"auto"})) == [(8, "0", 0), (8, "1", 0)]
    assert plain(make_slots(SweepSettings(jobs=1), {"auto"})) == [(16, "0", 0)]


@pytest.mark.parametrize(
    ("shown", "count", "names"),
    [
        (None, 3, ["0", "1", "2"]),
        ("2,5", 2, ["2", "5"]),
        ("GPU-8a, MIG-1/2/0 ,", 2, ["GPU-8a", "MIG-1/2/0"]),
        ("3,-1,4", 1, ["3"]),  # CUDA stops at the first invalid one
        ("", 0, []),
    ],
)
def test_names_of_gpus(monkeypatch: pytest.MonkeyPatch, shown: str | None, count: int, names: list[str]) -> None:
    with_gpus(monkeypatch, count)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert gpu_names() == names
    assert [s.gpu for s in make_slots(SweepSettings(), {"auto"})] == (names or [None])


def test_several_gpus_to_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 5)
    assert plain(make_slots(SweepSettings(), {"cuda"}, 2)) == [(4, "0,1", 0), (4, "2,3", 0)]
    assert plain(make_slots(SweepSettings(jobs_per_gpu=2, jobs=3), {"cuda"}, 2))[2] == (2, "0,1", 1)
    with pytest.raises(InputError, match=r"trainer.processes=6 needs one GPU per process, and this machine has 5"):
        make_slots(SweepSettings(), {"auto"}, 6)
    assert plain(make_slots(SweepSettings(), {"cpu"}, 6)) == [(2, None, 0)]


def test_environment() -> None:
    assert Slot(3).environment == dict.fromkeys(THREAD_VARIABLES, "3")
    assert "OMP_NUM_THREADS" in Slot(3).environment
    assert Slot(3, "1,2").environment == dict.fromkeys(THREAD_VARIABLES, "3") | {"CUDA_VISIBLE_DEVICES": "1,2"}


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 3), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 3), ("nonsense", 3), (None, 3)],
)
def test_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str | None, expected: int) -> None:
    file = tmp_path / "cpu.max"
    if quota is not None:
        file.write_text(quota + "\n")
    monkeypatch.setattr(module, "Path", lambda name: file if name == "/sys/fs/cgroup/cpu.max" else Path(name))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 5, 7}, raising=False)
    assert cpu_count() == expected
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu_count() == 1


# -- shared between sweeps ------------------------------------------------------------------------------------------


def test_a_slot_is_held_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    began = time.monotonic()
    with acquire_slot(Slot(1), lambda: False) as first, acquire_slot(Slot(1), lambda: False) as second:
        assert first
        assert second  # without a GPU there is nothing to share
    with acquire_slot(Slot(1, "0"), lambda: False) as mine:
        assert mine
        calls: list[None] = []

        def stopping() -> bool:
            calls.append(None)
            return len(calls) > 3

        with acquire_slot(Slot(1, "0"), stopping) as same:
            assert not same
        assert len(calls) == 4
        with acquire_slot(Slot(1, "0", 1), lambda: False) as place, acquire_slot(Slot(1, "1"), lambda: False) as other:
            assert place
            assert other
    with acquire_slot(Slot(1, "0"), lambda: False) as again:
        assert again
    with acquire_slot(Slot(1, "MIG-1/2/0"), lambda: False) as named:
        assert named
    with acquire_slot(Slot(1, "0"), lambda: True) as stopped:
        assert not stopped
    assert time.monotonic() - began < 5


def test_a_slot_is_given_back_by_a_sweep_that_dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)

    def other() -> None:
        with acquire_slot(Slot(1, "0"), lambda: False):
            (tmp_path / "held").touch()
            time.sleep(30)

    launcher = Launcher(other, tmp_path / "out")
    try:
        wait_until(lambda: (tmp_path / "held").exists())
        threading.Timer(0.3, lambda: launcher.send(signal.SIGKILL)).start()
        began = time.monotonic()
        with acquire_slot(Slot(1, "0"), lambda: False) as mine:
            assert mine
            assert time.monotonic() - began > 0.2
    finally:
        launcher.end()


def test_jobs_of_several_gpus_share_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep with two GPUs per job and one with a single GPU per job, on the same machine."""
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    with acquire_slot(Slot(1, "0,1"), lambda: False) as both:
        assert both
        began = time.monotonic()
        for gpu in ("0", "1"):
            with acquire_slot(Slot(1, gpu), lambda began=began: time.monotonic() - began > 0.1) as one:
                assert not one
        with acquire_slot(Slot(1, "2"), lambda: False) as other:
            assert other
    with acquire_slot(Slot(1, "1"), lambda: False):
        began = time.monotonic()
        with acquire_slot(Slot(1, "0,1"), lambda: time.monotonic() - began > 0.1) as both:
            assert not both
        with acquire_slot(Slot(1, "0"), lambda: False) as left:
            assert left  # having waited in vain, it has released the first


def test_somebody_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the user may have an id only."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with acquire_slot(Slot(1, "0"), lambda: False) as mine:
        assert mine
