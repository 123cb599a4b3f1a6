"""Runs, read from their directories and from a sweep's plan, in any state.

A run directory may be damaged, from an older version, in use or malicious: whatever cannot be read makes the run
`unreadable` and never raises. `sweep.json` lists the planned jobs; one without a result.json is `missing`.
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
from vaerun.storage.run_dir import PLAN_FILE, is_locked
from vaerun.storage.untrusted import PLAN_BYTES, RESULT_BYTES
from vaerun.storage.yaml_files import CONFIG_VALUES, read_config

OK, FAILED, INTERRUPTED, STOPPED, RUNNING, UNREADABLE, MISSING = (
    "ok", "failed", "interrupted", "stopped", "running", "unreadable", "missing",
)  # fmt: skip
NETWORKS = ("encoder", "decoder", "generator", "discriminator")  # parts of `model` that have a class each


def network_of(targets: Iterable[Any]) -> str | None:
    """The choice of `network=` that these classes belong to: conv for ConvEncoder and ConvDecoder.

    Several, joined by /, if the parts differ; None if there are none.
    """
    classes = [str(target).rpartition(".")[2] for target in targets if target is not None]
    choices = [re.sub(f"({'|'.join(NETWORKS)})$", "", name.lower()) or name for name in classes]
    return "/".join(dict.fromkeys(choices)) or None


@dataclass(frozen=True)
class RunSummary:
    """A run, or a planned job that has not started.

    Attributes:
        folder: run directory.
        name: its path relative to the folder that was read, printable.
        state: OK, FAILED, INTERRUPTED (saved and exited), STOPPED (recorded as running, but no process holds the
            lock), RUNNING, UNREADABLE or MISSING.
        progress: fraction of the training steps done, if known.
        error: why it failed or cannot be read; one printable line.
        result: content of result.json; {} if there is none.
        settings: the resolved configuration by dotted keys, lists as leaves; {} if it is not known.
        table: `sweep.table` of its configuration.
        planned: whether a sweep.json lists it.
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
        """A section of the result, such as protocol, by dotted keys; {} if it has none."""
        return _flat_or_empty(self.result.get(name))

    def number(self, section: str, key: str) -> float | None:
        """A finite number of the result, e.g. ("metrics", "test/elbo"); None if there is none."""
        values = self.result.get(section)
        value = values.get(key) if isinstance(values, dict) else None
        return float(value) if is_number(value) else None

    @property
    def seed(self) -> Any:
        return self.settings.get("seed", self.result.get("seed"))

    def setting(self, key: str) -> Any:
        """The value of a dotted key (of a group such as model: the name of its choice); None if it has none."""
        if key in self.settings:
            return self.settings[key]
        if key == "network":  # the configuration does not record this choice, but the classes reveal it
            return network_of([self.settings.get(f"model.{part}._target_") for part in NETWORKS])
        return self.settings.get(f"{key}.name")


def _flatten_mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise ValueError("not a mapping")
    check_size(value, CONFIG_VALUES)
    return dict(flatten(value))


def _flat_or_empty(value: Any) -> dict[str, Any]:
    try:
        return _flatten_mapping(value)
    except ValueError:
        return {}


def _read_mapping(path: Path, maximum_bytes: int) -> dict[str, Any]:
    """Read a JSON object. Raises OSError and ValueError."""
    value = read_json(path, maximum_bytes, path.parent)
    if not isinstance(value, dict):
        raise ValueError("not a mapping")
    return value


def _read_settings(folder: Path) -> dict[str, Any]:
    """.hydra/config.yaml by dotted keys; {} if it cannot be read."""
    try:
        return _flatten_mapping(read_config(folder / ".hydra" / "config.yaml", folder))
    except (OSError, ValueError):
        return {}


def _progress(folder: Path, total_steps: Any, settings: dict[str, Any]) -> float | None:
    """The last complete line of metrics.jsonl relative to the plan's steps, or else the configuration's epochs."""
    for line in read_last_lines(folder / "metrics.jsonl")[-1:]:
        for key, total in (("step", total_steps), ("epoch", settings.get("trainer.epochs"))):
            fraction = _fraction(line.get(key), total)
            if fraction is not None:
                return fraction
    return None


def _is_running(folder: Path) -> bool:
    # A lock that is a link, symbolic or hard, was not made by a run, and probing it would write to its target.
    try:
        status = (folder / ".lock").lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and is_locked(folder)


def _fraction(done: Any, total: Any) -> float | None:
    known = is_number(done) and is_number(total) and total > 0
    return min(max(done / total, 0.0), 1.0) if known else None


def _read_run(folder: Path, name: str, job: dict[str, Any]) -> RunSummary:
    """The run in a folder; `job` is its entry in a plan, {} if there is none."""
    planned = _flat_or_empty(job.get("config"))
    settings = _read_settings(folder) or planned
    # The plan comes first: `sweep.table` is not part of a run's identity, so its configuration may hold an older one.
    table = {
        k.removeprefix("sweep.table."): v for k, v in (planned or settings).items() if k.startswith("sweep.table.")
    }
    known: dict[str, Any] = {"settings": settings, "table": table, "planned": bool(job)}
    try:
        result = _read_mapping(folder / "result.json", RESULT_BYTES)
    except FileNotFoundError:
        return RunSummary(folder, name, RUNNING if _is_running(folder) else MISSING, **known)
    except (OSError, ValueError) as error:
        return RunSummary(folder, name, UNREADABLE, error=clean(f"result.json: {error}"), **known)
    state = result.get("status")
    if state == "running":
        state = RUNNING if _is_running(folder) else STOPPED
    error_line = clean(result["error"]) if result.get("error") else ""
    if state not in (OK, FAILED, INTERRUPTED, RUNNING, STOPPED):
        state, error_line = UNREADABLE, clean(f"result.json has the status {state!r}")
    if state == OK and not all(isinstance(result.get(k), dict) for k in ("metrics", "protocol")):
        state, error_line = UNREADABLE, "result.json has no metrics or protocol"
    progress = None
    if state in (RUNNING, STOPPED, INTERRUPTED):
        progress = _progress(folder, job.get("total_steps"), settings)
    return RunSummary(folder, name, state, progress, error_line, result, **known)


def _read_plan(path: Path, notes: list[str]) -> list[tuple[Path, dict[str, Any]]]:
    """(folder, entry) of each job in a sweep.json; a folder that is not below the plan's is skipped with a note.

    Raises OSError and ValueError.
    """
    jobs = _read_mapping(path, PLAN_BYTES).get("jobs")
    if not isinstance(jobs, list):
        raise ValueError("no list of jobs")
    entries = []
    for job in jobs:
        name = job.get("folder") if isinstance(job, dict) else None
        if not isinstance(name, str) or not name or "\0" in name:
            continue
        if ".." in Path(name).parts or not is_inside(path.parent / name, path.parent):
            notes.append(f"the plan names {clean(name)}, which is not below {clean(path.parent.name)}: skipped")
            continue
        entries.append((path.parent / name, job))
    return entries


def read_runs(root: Path) -> tuple[list[RunSummary], list[str]]:
    """All runs below a folder, planned ones first and in their order, and footnotes on what could not be read.

    Raises InputError if there are none.
    """
    if not root.is_dir():
        raise InputError(f"{clean(root)} is not a folder: name one with run directories, e.g. outputs")
    jobs: dict[Path, dict[str, Any]] = {}
    notes: list[str] = []
    for path in sorted(root.rglob(PLAN_FILE)):
        try:
            jobs |= dict(_read_plan(path, notes))
        except (OSError, ValueError) as error:
            notes.append(
                f"{clean(path.relative_to(root))} cannot be read ({clean(error)}): jobs not started are unknown"
            )
    folders = dict.fromkeys([*jobs, *sorted(path.parent for path in root.rglob("result.json"))])
    if not folders:
        raise InputError(f"no run below {clean(root)}: name a folder with run directories, e.g. outputs")
    return [
        _read_run(f, clean(f.relative_to(root) if f.is_relative_to(root) else f), jobs.get(f, {})) for f in folders
    ], notes
