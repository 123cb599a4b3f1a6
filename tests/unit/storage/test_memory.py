"""The memory that is available: as the kernel and the control groups of a container or batch job tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from vaerun.storage import memory

GIB = 1 << 30


def group(folder: Path, limit: str, used: int, cached: int, names: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used, f"anon 5\n{names[2]} {cached}\n"), strict=True):
        (folder / (name if name != names[2] else "memory.stat")).write_text(str(value))


def test_available_memory_of_this_machine() -> None:
    available = memory.available_bytes()
    assert available is not None
    assert 0 < available < 1 << 50


@pytest.mark.parametrize("controllers", ["", "memory"])
def test_the_tightest_limit_of_the_control_groups_counts(
    controllers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, *names = memory.VERSIONS[controllers]
    root = tmp_path / "groups"
    monkeypatch.setitem(memory.VERSIONS, controllers, (root, *names))
    (tmp_path / "self").write_text(f"5:cpu,cpuacct:/elsewhere\n4:{controllers}:/batch/job7\n")
    monkeypatch.setattr(memory, "PROCESS_GROUPS", tmp_path / "self")
    free = memory.available_bytes()
    assert free is not None
    group(root / "batch" / "job7", "max" if not controllers else str(1 << 62), 10, 0, tuple(names))
    assert abs(memory.available_bytes() - free) < GIB  # type: ignore[operator]
    group(root / "batch", "3000", 2500, 400, tuple(names))  # 400 of them could be given up
    assert memory.available_bytes() == 900
    group(root / "batch" / "job7", "1000", 800, 50, tuple(names))
    assert memory.available_bytes() == 250
    group(root / "batch" / "job7", "1000", 2000, 50, tuple(names))
    assert memory.available_bytes() == 0


def test_systems_that_tell_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "Path", lambda name: Path("/nowhere"))
    whole = memory.available_bytes()
    assert whole is not None
    assert whole > 0

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr("os.sysconf", unknown)
    assert memory.available_bytes() is None
