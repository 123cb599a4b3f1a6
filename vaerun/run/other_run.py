"""The error line for a run directory that holds another run: which settings differ, and how to go on."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vaerun.config.identity import differences
from vaerun.config.overrides import override
from vaerun.config.schema import Settings
from vaerun.storage.run_dir import next_free_dir
from vaerun.storage.yaml_files import read_config
from vaerun.text import printable

LENGTH = ("trainer.epochs", "trainer.max_steps")  # how long a run trains; null: no limit
TRAINING = ("evaluation.every", "evaluation.selection", "evaluation.diversity")  # these matter before the end of a run
NAMED = 3  # settings named in the line
CHOOSE = "choose another output_dir, or set trainer.resume=never for a new one"


def other_run(folder: Path, record: dict[str, Any], settings: Settings, overrides: list[str]) -> str:
    """The error line for a folder with the record of another run than that of these settings.

    Arguments:
        folder: the run directory.
        record: its result.json.
        settings: settings of the run that was to be written there.
        overrides: its command-line overrides.
    """
    other = f"{folder} holds a run of another configuration"
    try:
        changed = differences(read_config(folder / ".hydra" / "config.yaml", folder), asdict(settings))
    except (OSError, ValueError, AttributeError, TypeError):  # damaged, or of an earlier version
        return f"{other}: {CHOOSE}"
    if not changed:
        return f"{folder} holds a run with these settings of other data or by another version of vaerun: {CHOOSE}"
    named = [f"{key} is {_text(there)} there and {_text(here)} here" for key, (there, here) in changed.items()]
    more = f"; {len(named) - NAMED} more differ" if len(named) > NAMED else ""
    line = f"{other} ({', '.join(named[:NAMED])}{more})"
    if _is_longer(changed) and (folder / "checkpoints" / "last.pt").exists():
        return f"{line}: to train it further run {_longer(folder, overrides)}; or {CHOOSE}"
    if record["status"] == "ok" and all(key.startswith("evaluation.") and key not in TRAINING for key in changed):
        words = [override(key, here) for key, (_, here) in changed.items()]
        command = shlex.join(["vaerun-eval", override("run", str(folder)), *words])
        return f"{line}: to evaluate it again run {command}; or {CHOOSE}"
    return f"{line}: {CHOOSE}"


def _is_longer(changed: dict[str, tuple[Any, Any]]) -> bool:
    """Whether the runs differ in their length only, and the new one is longer."""
    limits = [[math.inf if value is None else value for value in pair] for pair in changed.values()]
    return changed.keys() <= set(LENGTH) and all(there < here for there, here in limits)


def _longer(folder: Path, overrides: list[str]) -> str:
    """The command that continues the run of this folder in another one."""
    kept = [w for w in overrides if w.lstrip("+").partition("=")[0] not in ("output_dir", "trainer.resume")]
    target = next_free_dir(folder)
    return shlex.join(["vaerun", *kept, override("trainer.resume", str(folder)), override("output_dir", str(target))])


def _text(value: Any) -> str:
    return "null" if value is None else printable(value, 60)
