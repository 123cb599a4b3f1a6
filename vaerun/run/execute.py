"""One run: what cannot work is refused, and the same command goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vaerun.config.settings import DataSettings, Settings, fingerprint
from vaerun.data.dataset import ImageData
from vaerun.distributed import process_group as parallel
from vaerun.distributed.collectives import Ranks
from vaerun.errors import InputError, Interrupted, RunError
from vaerun.run import result as records
from vaerun.run.build import build_data, resolve_device
from vaerun.run.experiment import Course
from vaerun.run.preflight import check_arithmetic
from vaerun.run.prepare import prepare
from vaerun.signals import ShutdownSignal
from vaerun.storage.run_dir import lock_run_dir, next_free_dir
from vaerun.training.determinism import choose_algorithms
from vaerun.training.step import process_lock


@dataclass(frozen=True)
class Company:
    """What a run needs to know where others train in the same process, each in a thread of its own.

    Attributes:
        data: gives the data set of these settings on the device; those that are equal are one.
        ready: called once, when all that concerns the whole process is done; returns when it is for all.
        label: what warnings of this run begin with.
    """

    data: Callable[[DataSettings, torch.device], ImageData]
    ready: Callable[[], None]
    label: str


def execute(
    settings: Settings,
    folder: Path,
    overrides: list[str],
    hydra: str | None = None,
    stop: ShutdownSignal | None = None,
    company: Company | None = None,
) -> dict[str, Any]:
    """Run what the settings say in this folder and return the record of result.json.

    Arguments:
        settings: checked.
        folder: the run directory; may exist.
        overrides: the command's words, for the record.
        hydra: Hydra's own configuration as yaml, for the record.
        stop: signals.
        company: of other runs in this process; None: it is alone.

    Raises InputError, RunError, Interrupted (errors.py); whatever is raised after the run has begun is in result.json.
    """
    with stop or ShutdownSignal() as stop:
        if settings.trainer.processes == 1:
            return _execute(settings, folder, overrides, hydra, stop, Ranks(), company)
        with parallel.process_group(resolve_device(settings.trainer.device).type) as ranks:
            try:
                return _execute(settings, folder, overrides, hydra, stop, ranks)
            except (InputError, RunError, Interrupted) as error:
                error.reported = isinstance(error, parallel.PeerLost) or (ranks.rank > 0 and ranks.shared(error))
                raise


def _execute(
    settings: Settings,
    folder: Path,
    overrides: list[str],
    hydra: str | None,
    stop: ShutdownSignal,
    ranks: Ranks,
    company: Company | None = None,
) -> dict[str, Any]:
    choose_algorithms(settings.trainer.deterministic)
    device = ranks.device or resolve_device(settings.trainer.device)
    check_arithmetic(settings.trainer, device)
    torch.distributions.Distribution.set_default_validate_args(False)  # a host sync per argument on a GPU
    if settings.trainer.resume == "never":
        folder = next_free_dir(folder)
    with process_lock:  # what is built draws from torch's global generator
        data = (build_data if company is None else company.data)(settings.data, device)
        identity = fingerprint(asdict(settings), data.sha256)
        if (
            done := _shown(ranks.on_rank_zero(lambda: records.check_existing_run(folder, identity)), folder, ranks)
        ) is not None:
            return done
        run = Course(settings, folder, stop, device, prepare(settings, data), ranks)
        run.start_from_named()
        if company is not None:
            parallel.check_noise(run.objective, data.train, "several runs in a process", "run them one by one")
    if company is not None:
        run.join(torch.Generator(device), company.ready, company.label)
    # Everything so far only read. The lock file is made by a run that cannot be refused any more, except for
    # another one being at work here.
    with ExitStack() as held:

        def begin() -> dict[str, Any] | None:
            held.enter_context(lock_run_dir(folder))
            return records.check_existing_run(folder, identity)

        before = ranks.on_rank_zero(begin)
        if (done := _shown(before, folder, ranks)) is not None:
            return done
        if ranks.rank:
            run.follow()
            return before or {}
        return run.recorded(before, overrides, hydra)


def _shown(record: dict[str, Any] | None, folder: Path, ranks: Ranks) -> dict[str, Any] | None:
    """The record of a run that is finished, once it is printed; None for another one."""
    if record is None or record["status"] != "ok":
        return None
    if not ranks.rank:
        records.tell(f"finished before: {folder}\n{records.table(record, folder)}")
    return record
