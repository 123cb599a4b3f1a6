"""All jobs of a sweep composed, checked and compared with what is on the disk, before the first one starts."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock
import torch

from vaerun.config.settings import DataSettings, Settings
from vaerun.data.dataset import ImageData
from vaerun.errors import InputError, RunError
from vaerun.incidental import is_incidental
from vaerun.launch.process import Job
from vaerun.run import result as records
from vaerun.run.build import build_data, resolve_device
from vaerun.run.prepare import prepare
from vaerun.storage.checkpoint import load_from_other_run
from vaerun.storage.json_files import read_json, write_json
from vaerun.storage.paths import expand_user
from vaerun.storage.run_dir import is_locked, next_free_dir
from vaerun.storage.untrusted import PLAN_BYTES
from vaerun.text import printable

PLAN = "sweep.json"

NEW, STARTED, FAILED, FINISHED, RUNNING = "new", "started", "failed", "finished", "running"


@dataclass
class Planned:
    """A job and where it stands.

    Attributes:
        job: the run.
        number: in the sweep, from 0.
        total_steps: of its training.
        state: NEW, STARTED (goes on from its checkpoint), FAILED (runs again), FINISHED (is skipped) or RUNNING
            (another process has it).
        label: the words that tell it from the other jobs.
        before: result.json as it was when the sweep began.
    """

    job: Job
    number: int
    total_steps: int
    state: str = NEW
    label: str = ""
    before: dict[str, Any] | None = field(default=None, repr=False)


class Checker:
    """Checks jobs one after the other; the data sets that they share are read once.

    Arguments:
        here: the jobs run on this machine, so that it must have the device that they ask for.
    """

    def __init__(self, here: bool = True) -> None:
        self.here = here
        self._data: tuple[DataSettings, ImageData] | None = None

    def data(self, settings: DataSettings) -> ImageData:
        """On the CPU: a sweep's own process leaves GPUs to the jobs. The last one asked for is kept."""
        if self._data is None or self._data[0] != settings:
            self._data = settings, build_data(settings, torch.device("cpu"))
        return self._data[1]

    def check(self, settings: Settings, folder: Path, words: list[str], hydra: str | None, number: int) -> Planned:
        """The job, if it can work. Raises InputError where not, or where its folder is another run's."""
        if self.here:
            resolve_device(settings.trainer.device)
        parts = prepare(settings, self.data(settings.data))
        if settings.trainer.resume == "never":
            folder = next_free_dir(folder)
        found = records.check_existing_run(folder, parts.identity)
        if settings.trainer.resume not in ("auto", "never") and not (folder / "checkpoints" / "last.pt").exists():
            load_from_other_run(expand_user(settings.trainer.resume), "cpu")
        job = Job(settings, folder, words, hydra, parts.identity)
        planned = Planned(job, number, parts.total_steps, before=found)
        planned.state = state_of(job)
        return planned


def state_of(job: Job) -> str:
    """Where a job stands, from its folder. Raises InputError where result.json cannot be read."""
    if is_locked(job.folder):
        return RUNNING
    found = records.read_result(job.folder)
    if found is None:
        return NEW
    if found["status"] == "ok" and found["fingerprint"] == job.fingerprint:
        return FINISHED
    if found["status"] == "failed":
        return FAILED
    return STARTED


def distinct(jobs: list[Planned]) -> list[Planned]:
    """Each run once: points of a sweep that are the same run are one job.

    Raises InputError where different runs have one folder.
    """
    found: dict[Path, Planned] = {}
    for planned in jobs:
        other = found.setdefault(planned.job.folder, planned).job
        if other.fingerprint != planned.job.fingerprint:
            raise InputError(
                f"'{' '.join(other.words)}' and '{' '.join(planned.job.words)}' are different runs, and both have the "
                f"folder {other.folder}: leave hydra.sweep.subdir as it is"
            )
    return list(found.values())


def label(jobs: list[Planned]) -> None:
    """Give each job the words that not all of them share."""
    count = Counter(word for planned in jobs for word in set(planned.job.words))
    for planned in jobs:
        own = [word for word in planned.job.words if count[word] < len(jobs)]
        planned.label = " ".join(own or planned.job.words) or "the defaults"


def write_plan(folder: Path, command: list[str], jobs: list[Planned]) -> None:
    """Add these jobs to the sweep's sweep.json, which keeps all that were ever planned in this folder.

    Raises RunError where it cannot be written, InputError for a file that is none.
    """
    path = folder / PLAN
    with ExitStack() as held_until_written:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Two sweeps may begin at once.
            held_until_written.enter_context(filelock.FileLock(folder / ".sweep.lock"))
        except OSError as error:
            raise RunError(f"cannot write into {folder}: {error}; choose another output_dir") from error
        old = read_plan(folder)
        known = {entry["folder"]: entry for entry in old["jobs"]} if old else {}
        for planned in jobs:
            job, place = planned.job, relative(planned.job.folder, folder)
            known[place] = {
                "folder": place,
                "fingerprint": job.fingerprint,
                "words": job.words,
                "total_steps": planned.total_steps,
                "config": asdict(replace(job.settings, output_dir=None)),
            }
        entries = list(known.values())
        if jobs:  # one table for all, of what they go through together
            table = asdict(jobs[-1].job.settings.sweep.table)
            table["rows"] = rows([entry["words"] for entry in entries], table)
            for entry in entries:
                entry["config"]["sweep"] = {**entry["config"].get("sweep", {}), "table": dict(table)}
        write_json(path, {"schema": 1, "command": command, "jobs": entries})


def rows(jobs: list[list[str]], table: dict[str, Any]) -> str:
    """The rows of a sweep's table: those that were asked for, and whatever else the sweep goes through.

    Arguments:
        jobs: their words.
        table: the settings `sweep.table`.
    """
    values: dict[str, set[str]] = {}
    for words in jobs:
        given = {key.lstrip("+"): value for key, _, value in (word.partition("=") for word in words)}
        for key in [*values, *given]:
            values.setdefault(key, set()).add(given.get(key, ""))
    asked = str(table["rows"]).split(",")
    columns = str(table["columns"] or "").split(",")
    for key, some in values.items():
        whole = key in ("seed", "cell", "experiment", "trainer", "evaluation", "output_dir")
        if len(some) > 1 and not whole and not is_incidental(key) and key not in columns:
            asked.append(key)
    return ",".join(dict.fromkeys(asked))


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The sweep's plan, or None where there is none. Raises InputError for one that cannot be read."""
    path = folder / PLAN
    try:
        found = read_json(path, PLAN_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({printable(error, 200)}): move it away") from error
    entries = found.get("jobs") if isinstance(found, dict) else None
    kinds = {"folder": str, "words": list, "config": dict}
    if not isinstance(entries, list) or any(
        not isinstance(e, dict) or any(not isinstance(e.get(k), kind) for k, kind in kinds.items()) for e in entries
    ):
        raise InputError(f"{path} is no plan of vaerun's: move it away, or choose another output_dir")
    return found


def relative(folder: Path, base: Path) -> str:
    """`folder` as seen from `base`; absolute where it is elsewhere."""
    return str(folder.relative_to(base)) if folder.is_relative_to(base) else str(folder)
