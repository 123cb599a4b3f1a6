"""How many jobs run at once on this machine, and what each of them may use."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

from vaerun.config.settings import SweepSettings
from vaerun.errors import InputError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Slot:
    """Room for one job: its share of the cores, and the GPU that it sees (None: whatever there is)."""

    threads: int
    gpu: str | None = None
    place: int = 0  # among the slots of this GPU

    @property
    def environment(self) -> dict[str, str]:
        """Of a job in this slot."""
        found = {name: str(self.threads) for name in THREAD_VARIABLES}
        return found if self.gpu is None else found | {"CUDA_VISIBLE_DEVICES": self.gpu}


def cores() -> int:
    """Cores that this process may use: affinity, and the quota of its control group."""
    try:
        found = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        found = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        found = min(found, max(1, int(int(quota) / int(period)))) if quota != "max" else found
    except (OSError, ValueError):
        pass
    return found


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES would name this machine's GPUs, without starting CUDA in this process."""
    import torch

    count = torch.cuda.device_count()
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(count)] if shown is None else [n.strip() for n in shown.split(",") if n.strip()]
    return names[:count]


def slots(settings: SweepSettings, devices: set[str], processes: int = 1) -> list[Slot]:
    """The slots of a sweep.

    Arguments:
        settings: `sweep`.
        devices: what the jobs' trainer.device says.
        processes: the most that one job has (trainer.processes).

    With trainer.device=auto or cuda on a machine with GPUs: sweep.jobs_per_gpu slots for each, one GPU a job (with
    trainer.processes=N: N of them), at most sweep.jobs. Else sweep.jobs slots (1). Cores are divided among the slots,
    or fewer threads used where OMP_NUM_THREADS asks for that.

    Raises InputError where a job needs more GPUs than there are.
    """
    found = gpus() if devices & {"auto", "cuda"} else []
    if found and processes > 1:
        if len(found) < processes:
            raise InputError(f"trainer.processes={processes} needs a GPU each, and this machine has {len(found)}")
        groups = [found[i : i + processes] for i in range(0, len(found) - processes + 1, processes)]
        names = [",".join(group) for group in groups]
    else:
        names = found
    places: list[tuple[str | None, int]] = [(name, i) for i in range(settings.jobs_per_gpu) for name in names]
    count = settings.jobs or max(1, len(places))
    places = places[:count] if places else [(None, i) for i in range(count)]
    threads = max(1, cores() // (len(places) * processes))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(threads, int(asked)) if asked.isdigit() and int(asked) > 0 else threads
    return [Slot(threads, gpu, place) for gpu, place in places]


@contextmanager
def taken(slot: Slot, stopping: Callable[[], bool]) -> Iterator[bool]:
    """Hold the slot of a GPU, which other sweeps on this machine may want too; False where it was given up waiting."""
    if slot.gpu is None:
        yield True
        return
    folder = Path(tempfile.gettempdir()) / f"vaerun-gpus-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    folder.mkdir(exist_ok=True)
    names = sorted(slot.gpu.split(","))  # in one order everywhere, and all or none: nobody waits for ever
    locks = [filelock.FileLock(folder / f"{name.replace('/', '_')}-{slot.place}.lock") for name in names]
    while not stopping():
        with ExitStack() as held:
            try:
                for lock in locks:
                    lock.acquire(timeout=0)
                    held.callback(lock.release)
            except filelock.Timeout:
                pass
            else:
                yield True
                return
        time.sleep(POLL_SECONDS)
    yield False
