"""Runs read from their directories and from the plan of a sweep, whatever state they are in.

A run directory may be damaged, of an older version, in use, or a stranger's: what cannot be read makes the run
`unreadable`, never an error. `sweep.json` names the jobs that were planned; one whose folder has no result.json is
missing.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaerun.errors import InputError
from vaerun.report.text import clean, is_number
from vaerun.storage.json_files import read_json, read_last_lines
from vaerun.storage.paths import is_inside
from vaerun.storage.plain_values import check_size, flatten
from vaerun.storage.run_dir import is_locked
from vaerun.storage.untrusted import PLAN_BYTES, RESULT_BYTES
from vaerun.storage.yaml_files import CONFIG_VALUES, read_config

OK, FAILED, INTERRUPTED, STOPPED, RUNNING, UNREADABLE, MISSING = (
    "ok", "failed", "interrupted", "stopped", "running", "unreadable", "missing",
)  # fmt: skip
PLAN = "sweep.json"
NETWORKS = ("encoder", "decoder", "generator", "discriminator")  # of `model`, each with a class of its own


def network_of(targets: Iterable[Any]) -> str | None:
    """The kind of networks by their classes, as `network=` names it: conv for ConvEncoder and ConvDecoder.

    Several where the parts are of different kinds; None where there are none.
    """
    names = [str(target).rpartition(".")[2] for target in targets if target is not None]
    kinds = [re.sub(f"({'|'.join(NETWORKS)})$", "", name.lower()) or name for name in names]
    return "/".join(dict.fromkeys(kinds)) or None


@dataclass(frozen=True)
class Run:
    """One run, or one job that shall become one.

    Attributes:
        folder: its directory.
        name: the same below the folder that was read, printable.
        state: OK, FAILED, INTERRUPTED (saved, then left), STOPPED (says running, and no process holds the folder),
            RUNNING, UNREADABLE or MISSING.
        progress: share of the training's steps that are done, if known.
        error: why it failed or cannot be read; one printable line.
        record: result.json, {} where there is none.
        settings: the resolved configuration by dotted keys, lists as leaves; {} where it is not known.
        table: what the sweep's configuration says of its table.
        planned: a sweep.json names it.
    """

    folder: Path
    name: str
    state: str
    progress: float | None = None
    error: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    table: dict[str, Any] = field(default_factory=dict)
    planned: bool = False

    def section(self, name: str) -> dict[str, Any]:
        """A mapping of the record, such as protocol, by dotted keys; {} where it has none."""
        found = self.result.get(name)
        return _flat_or_empty(found)

    def number(self, part: str, key: str) -> float | None:
        """A finite number of the record, e.g. ("metrics", "test/elbo"); None where there is none."""
        found = self.result.get(part)
        value = found.get(key) if isinstance(found, dict) else None
        return float(value) if is_number(value) else None

    @property
    def seed(self) -> Any:
        return self.settings.get("seed", self.result.get("seed"))

    def setting(self, key: str) -> Any:
        """The setting of a dotted key (of a group such as model: its choice's name), None where it has none."""
        if key in self.settings:
            return self.settings[key]
        if key == "network":  # the configuration does not keep this group's choice: its parts' class says it
            return network_of([self.settings.get(f"model.{part}._target_") for part in NETWORKS])
        return self.settings.get(f"{key}.name")


def _flat_settings(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise ValueError("no mapping")
    check_size(value, CONFIG_VALUES)
    return dict(flatten(value))


def _flat_or_empty(value: Any) -> dict[str, Any]:
    try:
        return _flat_settings(value)
    except ValueError:
        return {}


def _json(path: Path, most: int) -> dict[str, Any]:
    """Raises OSError and ValueError."""
    found = read_json(path, most, path.parent)
    if not isinstance(found, dict):
        raise ValueError("no mapping")
    return found


def _config(folder: Path) -> dict[str, Any]:
    """.hydra/config.yaml by dotted keys; {} where there is none that can be read."""
    try:
        return _flat_settings(read_config(folder / ".hydra" / "config.yaml", folder))
    except (OSError, ValueError):
        return {}


def _progress(folder: Path, total_steps: Any, settings: dict[str, Any]) -> float | None:
    """From the last whole line of metrics.jsonl, against the plan's steps or else the configuration's epochs."""
    for record in read_last_lines(folder / "metrics.jsonl")[-1:]:
        for key, whole in (("step", total_steps), ("epoch", settings.get("trainer.epochs"))):
            share = _share(record.get(key), whole)
            if share is not None:
                return share
    return None


def _busy(folder: Path) -> bool:
    """A lock that is a link (a hard one too) was not made by a run; to try it would write to where it points."""
    try:
        found = (folder / ".lock").lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and is_locked(folder)


def _share(done: Any, whole: Any) -> float | None:
    known = is_number(done) and is_number(whole) and whole > 0
    return min(max(done / whole, 0.0), 1.0) if known else None


def _run(folder: Path, name: str, job: dict[str, Any]) -> Run:
    """The run of a folder; `job` is what the plan says of it, {} for nothing."""
    planned = _flat_or_empty(job.get("config"))
    settings = _config(folder) or planned
    # What was planned last: `sweep.table` is no part of a run, so that a run keeps the one that it began with.
    table = {
        k.removeprefix("sweep.table."): v for k, v in (planned or settings).items() if k.startswith("sweep.table.")
    }
    known: dict[str, Any] = {"settings": settings, "table": table, "planned": bool(job)}
    try:
        record = _json(folder / "result.json", RESULT_BYTES)
    except FileNotFoundError:
        return Run(folder, name, RUNNING if _busy(folder) else MISSING, **known)
    except (OSError, ValueError) as error:
        return Run(folder, name, UNREADABLE, error=clean(f"result.json: {error}"), **known)
    state = record.get("status")
    if state == "running":
        state = RUNNING if _busy(folder) else STOPPED
    why = clean(record["error"]) if record.get("error") else ""
    if state not in (OK, FAILED, INTERRUPTED, RUNNING, STOPPED):
        state, why = UNREADABLE, clean(f"result.json has the status {state!r}")
    if state == OK and not all(isinstance(record.get(k), dict) for k in ("metrics", "protocol")):
        state, why = UNREADABLE, "result.json holds no metrics and protocol"
    progress = None
    if state in (RUNNING, STOPPED, INTERRUPTED):
        progress = _progress(folder, job.get("total_steps"), settings)
    return Run(folder, name, state, progress, why, record, **known)


def _plan(path: Path, notes: list[str]) -> list[tuple[Path, dict[str, Any]]]:
    """The folders and entries of a sweep.json; a folder that is not below the plan's is left out, with a note.

    Raises OSError and ValueError.
    """
    jobs = _json(path, PLAN_BYTES).get("jobs")
    if not isinstance(jobs, list):
        raise ValueError("no list of jobs")
    found = []
    for job in jobs:
        name = job.get("folder") if isinstance(job, dict) else None
        if not isinstance(name, str) or not name or "\0" in name:
            continue
        if ".." in Path(name).parts or not is_inside(path.parent / name, path.parent):
            notes.append(f"the plan names {clean(name)}, which is not below {clean(path.parent.name)}: left out")
            continue
        found.append((path.parent / name, job))
    return found


def read_runs(root: Path) -> tuple[list[Run], list[str]]:
    """All runs below a folder, those of sweeps' plans first and in their order; and what is to be said of the reading.

    Raises InputError where there are none.
    """
    if not root.is_dir():
        raise InputError(f"{clean(root)} is no folder: name one with run directories, e.g. outputs")
    jobs: dict[Path, dict[str, Any]] = {}
    notes: list[str] = []
    for path in sorted(root.rglob(PLAN)):
        try:
            jobs |= dict(_plan(path, notes))
        except (OSError, ValueError) as error:
            notes.append(f"{clean(path.relative_to(root))} cannot be read ({clean(error)}): jobs not begun are unknown")
    folders = dict.fromkeys([*jobs, *sorted(path.parent for path in root.rglob("result.json"))])
    if not folders:
        raise InputError(f"there is no run below {clean(root)}: name a folder with run directories, e.g. outputs")
    return [
        _run(f, clean(f.relative_to(root) if f.is_relative_to(root) else f), jobs.get(f, {})) for f in folders
    ], notes
