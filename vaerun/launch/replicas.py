"""Several runs in one process: on a GPU all at once, elsewhere one after the other.

The networks here are far too small to fill a GPU: most of a step is kernels that wait for one another. So each run is a
thread with its own CUDA stream, in which captured steps (training/cuda_graph.py) are replayed; kernels of different
streams run side by side. Every run is an ordinary one, with its own folder, record and checkpoints, and its own
generator: what it gives is what it would have given alone. One that fails leaves the others be.

What concerns the whole process is done by one thread at a time, before any of them trains: networks drawn from torch's
global generator, the recording of steps. On a CPU one run has all cores busy: there the runs take turns.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vaerun.config.settings import DataSettings, Settings
from vaerun.data.dataset import ImageData
from vaerun.errors import EXIT_BUSY, InputError, Interrupted, RunError
from vaerun.run.build import build_data, resolve_device
from vaerun.run.execute import Company, execute
from vaerun.signals import ShutdownSignal
from vaerun.storage.run_dir import RunDirLocked
from vaerun.tracking.progress import without_progress

TICK_SECONDS = 0.2


@dataclass(frozen=True)
class Member:
    """One of the runs; see execute.execute.

    Attributes:
        settings, folder, words, hydra: of the run.
        label: what its warnings begin with.
    """

    settings: Settings
    folder: Path
    words: list[str]
    hydra: str | None
    label: str = ""


class Gate:
    """Opens when all of so many have come to it, or gone home; or once a signal has come."""

    def __init__(self, members: int, stop: ShutdownSignal) -> None:
        self.left, self.stop, self.changed = members, stop, threading.Condition()

    def come(self) -> None:
        """One less to wait for."""
        with self.changed:
            self.left -= 1
            self.changed.notify_all()

    def wait(self) -> None:
        """Until it is open."""
        with self.changed:
            while self.left > 0 and self.stop.signum is None:
                self.changed.wait(TICK_SECONDS)


class SharedData:
    """Data sets on the device, one for equal settings."""

    def __init__(self) -> None:
        self.known: list[tuple[DataSettings, torch.device, ImageData]] = []

    def __call__(self, settings: DataSettings, device: torch.device) -> ImageData:
        """The one of these settings. Callers take turns."""
        for known, where, data in self.known:
            if known == settings and where == device:
                return data
        self.known.append((settings, device, build_data(settings, device)))
        return self.known[-1][2]


def side_by_side(members: Sequence[Member]) -> bool:
    """Whether they run at once: on a GPU. Raises InputError for a device that there is not.

    Not where steps are made each time in TF32, nor where some runs are deterministic and others are not: torch switches
    both for the whole process.
    """
    trainers = [member.settings.trainer for member in members]
    switching = any(trainer.compile == "none" and trainer.precision == "tf32" for trainer in trainers)
    differing = len({trainer.deterministic for trainer in trainers}) > 1
    return not (switching or differing) and all(resolve_device(trainer.device).type == "cuda" for trainer in trainers)


def run_together(
    members: Sequence[Member], stop: ShutdownSignal, ended: Callable[[int, BaseException | None], None]
) -> None:
    """Run all of them; whatever becomes of one, the others go on.

    Arguments:
        members: the runs.
        stop: signals, which reach every run: each saves and stops.
        ended: called with the number of a run when it ends, and what was raised, from the run's thread.

    Raises Interrupted where a second SIGINT comes.
    """
    # Streams share so many queues to the GPU; read when CUDA starts.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    shared, at_once = SharedData(), side_by_side(members)
    gate = Gate(len(members) if at_once else 0, stop)

    def run(number: int) -> None:
        member, came = members[number], False
        error: BaseException | None = None

        def ready() -> None:
            nonlocal came
            if not came:
                came = True
                gate.come()
            gate.wait()

        try:
            company = Company(shared, ready, member.label)
            own = ShutdownSignal(parent=stop)
            execute(member.settings, member.folder, member.words, member.hydra, own, company)
        except BaseException as raised:
            error = raised
        finally:
            if not came:
                gate.come()
        ended(number, error)

    if not at_once:
        for number in range(len(members)):
            if stop.signum is not None:
                ended(number, Interrupted(stop.signum))
            else:
                run(number)
        return

    def quietly(number: int) -> None:
        with without_progress():
            run(number)

    threads = [
        threading.Thread(target=run if number == 0 else quietly, args=(number,), daemon=True, name=f"run {number}")
        for number in range(len(members))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # so that this thread, which signals come to, is never long in one call
            thread.join(TICK_SECONDS)


def exit_code(error: BaseException | None) -> int:
    """Of a run that ended so: those of `vaerun`, and EXIT_BUSY."""
    if error is None:
        return 0
    if isinstance(error, RunDirLocked):
        return EXIT_BUSY
    if isinstance(error, Interrupted):
        return error.exit_code
    return 2 if isinstance(error, InputError) else 1


def told(error: BaseException, label: str = "") -> str:
    """What is said of it: one line for what can be named, a traceback for a bug of ours."""
    if isinstance(error, InputError | RunError):
        return f"vaerun: error: {label}{' '.join(str(error).split())}"
    if isinstance(error, Interrupted):
        return f"vaerun: {label}{error}"
    return "".join(traceback.format_exception(error)).rstrip()


def run_replicas(members: Sequence[Member]) -> None:
    """The runs of trainer.replicas, which differ in their seeds alone.

    Raises the gravest of what they raised: Interrupted, then InputError, then RunError.
    """
    errors: dict[int, BaseException] = {}
    began = time.monotonic()

    def ended(number: int, error: BaseException | None) -> None:
        member = members[number]
        if error is not None:
            errors[number] = error
            print(told(error, member.label), file=sys.stderr, flush=True)

    with ShutdownSignal() as stop, stop.deferred():
        run_together(members, stop, ended)
    done = len(members) - len(errors)
    print(f"{done} of {len(members)} runs done in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    for number, member in enumerate(members):
        state = "done" if number not in errors else "not done"
        print(f"  {member.label}{state}: {member.folder}", file=sys.stderr, flush=True)
    if not errors:
        return
    kinds = (Interrupted, KeyboardInterrupt, InputError, RunError)
    worst = min(errors.values(), key=lambda e: next((i for i, k in enumerate(kinds) if isinstance(e, k)), len(kinds)))
    if isinstance(worst, InputError | RunError | Interrupted):
        worst.reported = True
    elif not isinstance(worst, KeyboardInterrupt):
        worst = RunError("a run failed (above)")
    raise worst
