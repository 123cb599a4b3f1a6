"""Several runs in one process: concurrent on a GPU, sequential on other devices.

Typical networks are far too small to fill a GPU: most of a step is spent on kernels that wait for each other. Each run
therefore gets a thread with its own CUDA stream, in which captured steps (training/cuda_graph.py) are replayed, so that
kernels of different runs overlap. Each run has its own folder, result, checkpoints and generator, and is identical to a
stand-alone run. A failed run does not affect the others.

Work that affects the whole process, such as initialising networks from torch's global generator or capturing steps, is
done by one thread at a time, before any run trains. On a CPU a single run keeps all cores busy.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import torch

from vaerun.config.schema import DataSettings
from vaerun.data.dataset import ImageData
from vaerun.defaults import own_defaults
from vaerun.errors import InputError, Interrupted, RunError, error_line
from vaerun.launch.job import Job
from vaerun.run.build import build_data, resolve_device
from vaerun.run.experiment import Experiment, SharedProcess
from vaerun.signals import ShutdownSignal
from vaerun.text import print_output
from vaerun.tracking.progress import without_progress

TICK_SECONDS = 0.2


class Barrier:
    """Barrier that opens once every run has arrived or ended, or a signal was received.

    threading.Barrier would not open for a signal, or if a run ends without waiting.
    """

    def __init__(self, runs: int, stop: ShutdownSignal) -> None:
        self.missing, self.stop, self.changed = runs, stop, threading.Condition()

    def arrive(self) -> None:
        """Count one run as arrived."""
        with self.changed:
            self.missing -= 1
            self.changed.notify_all()

    def wait(self) -> None:
        """Block until the barrier is open."""
        with self.changed:
            while self.missing > 0 and self.stop.signum is None:
                self.changed.wait(TICK_SECONDS)


class DatasetCache:
    """Cache of data sets on the device, shared by runs with equal settings. Not thread-safe."""

    def __init__(self) -> None:
        self.entries: list[tuple[DataSettings, torch.device, ImageData]] = []

    def __call__(self, settings: DataSettings, device: torch.device) -> ImageData:
        """Return the data set for these settings; built on first use."""
        for cached_settings, cached_device, data in self.entries:
            if cached_settings == settings and cached_device == device:
                return data
        self.entries.append((settings, device, build_data(settings, device)))
        return self.entries[-1][2]


def can_run_concurrently(jobs: Sequence[Job]) -> bool:
    """Whether the jobs can run concurrently, on a GPU. Raises InputError for an unavailable device.

    They cannot if eager steps use TF32, or only some runs are deterministic: both are process-wide switches of torch.
    """
    trainers = [job.settings.trainer for job in jobs]
    eager_tf32 = any(trainer.compile == "none" and trainer.precision == "tf32" for trainer in trainers)
    mixed_determinism = len({trainer.deterministic for trainer in trainers}) > 1
    return not (eager_tf32 or mixed_determinism) and all(
        resolve_device(trainer.device).type == "cuda" for trainer in trainers
    )


@own_defaults()
def run_jobs(jobs: Sequence[Job], stop: ShutdownSignal, on_end: Callable[[int, BaseException | None], None]) -> None:
    """Run all jobs in this process; a failed one does not affect the others.

    Arguments:
        jobs: jobs to run.
        stop: shutdown signals; on a signal every run saves and stops.
        on_end: called in the run's thread when a job ends, with its index and the exception it raised, if any.

    Raises Interrupted on a second SIGINT.
    """
    # Number of hardware queues shared by the streams; read when CUDA is initialised.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    datasets, concurrent = DatasetCache(), can_run_concurrently(jobs)
    barrier = Barrier(len(jobs) if concurrent else 0, stop)

    def run(index: int) -> None:
        job, arrived = jobs[index], False
        error: BaseException | None = None

        def ready() -> None:
            nonlocal arrived
            if not arrived:
                arrived = True
                barrier.arrive()
            barrier.wait()

        try:
            run_stop, shared = ShutdownSignal(parent=stop), SharedProcess(datasets, ready, job.prefix)
            Experiment(job.settings, job.folder, job.overrides, job.hydra, run_stop, shared).run()
        except BaseException as raised:
            error = raised
        finally:
            if not arrived:
                barrier.arrive()
        on_end(index, error)

    if not concurrent:
        for index in range(len(jobs)):
            if stop.signum is not None:
                on_end(index, Interrupted(stop.signum))
            else:
                run(index)
        return

    def run_silently(index: int) -> None:
        with without_progress():
            run(index)

    threads = [
        threading.Thread(target=run_silently if index else run, args=(index,), daemon=True, name=f"run {index}")
        for index in range(len(jobs))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # join with a timeout, since signals are handled in this thread
            thread.join(TICK_SECONDS)


def format_error(error: BaseException, prefix: str = "") -> str:
    """Format an expected error as one line, and a bug with its traceback."""
    if isinstance(error, InputError | RunError | Interrupted):
        return error_line(error, prefix=prefix)
    return "".join(traceback.format_exception(error)).rstrip()


def run_replicas(jobs: Sequence[Job]) -> None:
    """Run the replicas of trainer.replicas, which differ only in their seeds.

    If several fail, raises the most severe exception: Interrupted, then InputError, then RunError.
    """
    errors: dict[int, BaseException] = {}
    began = time.monotonic()

    def on_end(index: int, error: BaseException | None) -> None:
        if error is not None:
            errors[index] = error
            print_output(format_error(error, jobs[index].prefix), sys.stderr)

    with ShutdownSignal() as stop, stop.deferred():
        run_jobs(jobs, stop, on_end)
    done = len(jobs) - len(errors)
    print_output(f"{done} of {len(jobs)} runs done in {time.monotonic() - began:.0f} s", sys.stderr)
    for index, job in enumerate(jobs):
        state = "done" if index not in errors else "not done"
        print_output(f"  {job.prefix}{state}: {job.folder}", sys.stderr)
    if not errors:
        return
    order = (Interrupted, KeyboardInterrupt, InputError, RunError)
    worst = min(errors.values(), key=lambda e: next((i for i, t in enumerate(order) if isinstance(e, t)), len(order)))
    if isinstance(worst, InputError | RunError | Interrupted):
        worst.reported = True
    elif not isinstance(worst, KeyboardInterrupt):
        worst = RunError("a run failed (see above)")
    raise worst
