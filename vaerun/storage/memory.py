"""The memory that is available to this process."""

from __future__ import annotations

import os
from pathlib import Path

PROCESS_GROUPS = Path("/proc/self/cgroup")
VERSIONS = {
    "": (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    "memory": (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}
"""Where control groups of version 2 and 1 keep the limit, the use, and how much of it is only a cache of files."""


def available_bytes() -> int | None:
    """Bytes of memory and swap that this process could still take; None if the system does not tell.

    On Linux those that the kernel estimates to be available, within the limits of the process's control groups, as
    containers and batch systems set them; elsewhere the whole memory of the machine.
    """
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        available = 1024 * sum(int(fields[name].split()[0]) for name in ("MemAvailable", "SwapFree"))
    except (OSError, ValueError, KeyError):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):
            return None
    return max(0, min([available, *_cgroup_bytes()]))


def _cgroup_bytes() -> list[int]:
    """What is left of each limit on the memory of this process's control groups, whose files `VERSIONS` names."""
    try:
        lines = PROCESS_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers not in VERSIONS:
            continue
        root, limit, used, cached = VERSIONS[controllers]
        folder = root / name.strip("/")
        while folder.is_relative_to(root):
            try:
                fields = dict(
                    line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines()
                )
                taken = _number(folder / used) - int(fields[cached])
                left.append(_number(folder / limit) - taken)
            except (OSError, ValueError, KeyError):  # no limit, or a group that this container does not see
                pass
            folder = folder.parent
    return left


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))
