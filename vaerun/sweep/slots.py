"""Slots: how many jobs run at once on this machine, and which cores and GPUs each one uses."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

from vaerun.config.schema import SweepSettings
from vaerun.errors import InputError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Slot:
    """Resources of one job.

    Attributes:
        threads: number of CPU threads.
        gpu: visible GPUs, as in CUDA_VISIBLE_DEVICES; None: no restriction.
        index: index among the slots of this GPU.
    """

    threads: int
    gpu: str | None = None
    index: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of a job in this slot."""
        variables = {name: str(self.threads) for name in THREAD_VARIABLES}
        return variables if self.gpu is None else variables | {"CUDA_VISIBLE_DEVICES": self.gpu}


def cpu_count() -> int:
    """Number of cores that this process may use, according to its affinity and cgroup quota."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        count = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        count = min(count, max(1, int(int(quota) / int(period)))) if quota != "max" else count
    except (OSError, ValueError):
        pass
    return count


def gpu_names() -> list[str]:
    """Names of the available GPUs as in CUDA_VISIBLE_DEVICES, determined without initialising CUDA in this process."""
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(count)] if visible is None else [n.strip() for n in visible.split(",") if n.strip()]
    return names[:count]


def make_slots(settings: SweepSettings, devices: set[str], processes: int = 1) -> list[Slot]:
    """Create the slots of a sweep.

    On a machine with GPUs and trainer.device=auto or cuda: sweep.jobs_per_gpu slots per GPU, at most sweep.jobs in
    total, each with one GPU (with trainer.processes=N: N GPUs). Otherwise: sweep.jobs slots (default 1). Cores are
    divided evenly among the slots; OMP_NUM_THREADS limits the threads of each.

    Arguments:
        settings: `sweep`.
        devices: values of trainer.device among the jobs.
        processes: maximum of trainer.processes over the jobs.

    Raises InputError if a job needs more GPUs than this machine has.
    """
    names = gpu_names() if devices & {"auto", "cuda"} else []
    if names and processes > 1:
        if len(names) < processes:
            raise InputError(
                f"trainer.processes={processes} needs one GPU per process, and this machine has {len(names)}: "
                "lower trainer.processes"
            )
        groups = [names[i : i + processes] for i in range(0, len(names) - processes + 1, processes)]
        names = [",".join(group) for group in groups]
    places: list[tuple[str | None, int]] = [(name, i) for i in range(settings.jobs_per_gpu) for name in names]
    count = settings.jobs or max(1, len(places))
    places = places[:count] if places else [(None, i) for i in range(count)]
    threads = max(1, cpu_count() // (len(places) * processes))
    limit = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(threads, int(limit)) if limit.isdigit() and int(limit) > 0 else threads
    return [Slot(threads, gpu, index) for gpu, index in places]


@contextmanager
def acquire_slot(slot: Slot, stopping: Callable[[], bool]) -> Iterator[bool]:
    """Lock the slot's GPUs against other sweeps on this machine; yields False if `stopping` ended the wait."""
    if slot.gpu is None:
        yield True
        return
    folder = Path(tempfile.gettempdir()) / f"vaerun-gpus-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    folder.mkdir(exist_ok=True)
    names = sorted(slot.gpu.split(","))  # lock in sorted order, all or none, to prevent deadlocks
    locks = [filelock.FileLock(folder / f"{name.replace('/', '_')}-{slot.index}.lock") for name in names]
    while not stopping():
        with ExitStack() as acquired:
            try:
                for lock in locks:
                    lock.acquire(timeout=0)
                    acquired.callback(lock.release)
            except filelock.Timeout:
                pass
            else:
                yield True
                return
        time.sleep(POLL_SECONDS)
    yield False
