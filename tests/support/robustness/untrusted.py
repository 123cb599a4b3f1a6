"""For tests of malicious and damaged input: every command that opens a run directory, and its side effects."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import vaerun
from vaerun.cli import evaluate, table
from vaerun.config.identity import fingerprint
from vaerun.errors import InputError
from vaerun.run.build import build_model, build_objective
from vaerun.storage.checkpoint import load_checkpoint, save_checkpoint

FORMATS = (["--format", "md"], ["--format", "csv"], ["--list", "--format", "csv"], ["--list"])
COMPARED = (
    ["--rows", "model"],
    ["--rows", "model", "--format", "csv"],
    ["--rows", "model", "--format", "tex"],
    ["--rows", "model", "--paired", "--mix", "all"],
)


@dataclass
class SideEffects:
    """What Python was asked to do: programs started, addresses connected to, files changed."""

    started: list[str] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)


_active: list[SideEffects] = []
_START_EVENTS = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
}
_CHANGE_EVENTS = {
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "shutil.rmtree",
}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _active:
        return
    effects = _active[-1]
    if event in _START_EVENTS:
        effects.started.append(f"{event} {arguments[:2]}")
    elif event == "socket.connect":
        effects.connected.append(str(arguments[1:]))
    elif event in _CHANGE_EVENTS and event != "shutil.rmtree" and isinstance(arguments[-1], int) and arguments[-1] >= 0:
        return  # relative to an open directory: within shutil.rmtree, whose own event came before
    elif event in _CHANGE_EVENTS:
        effects.written += [str(a) for a in arguments[: 2 if event == "os.rename" else 1]]
    elif event == "open":
        path, mode, flags = arguments
        if isinstance(path, str | bytes) and (set(mode or "") & set("wxa+") or (mode is None and flags & 3)):
            effects.written.append(path if isinstance(path, str) else path.decode())


_installed = False


@contextmanager
def watch_side_effects() -> Iterator[SideEffects]:
    """Record the side effects of a block. Audit hooks cannot be removed, so a single one is installed."""
    global _installed
    if not _installed:
        sys.addaudithook(_audit)
        _installed = True
    _active.append(SideEffects())
    try:
        yield _active[-1]
    finally:
        _active.pop()


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass
class Outcome:
    """How the commands that opened a directory ended: exit codes (2: InputError), all output, and side effects."""

    codes: dict[str, int]
    text: str
    side_effects: SideEffects


def open_all(folder: Path, capsys: Any, commands: tuple[str, ...] = ("load_run", "eval", "table")) -> Outcome:
    """Open a run directory by load_run (with its data), vaerun-eval and vaerun-table in all formats."""
    codes, errors = {}, ""
    capsys.readouterr()
    with watch_side_effects() as effects:
        if "load_run" in commands:
            try:
                run = vaerun.load_run(folder)
                run.data, run.model  # noqa: B018
                codes["load_run"] = 0
            except InputError as error:
                codes["load_run"] = 2
                errors += f"vaerun: error: {error}"
        if "eval" in commands:
            codes["eval"] = evaluate.main([f"run={folder}", "seed=3"])
        if "table" in commands:
            for words in (*FORMATS, *COMPARED):
                codes[f"table {' '.join(words)}"] = table.main([str(folder), *words])
    out, err = capsys.readouterr()
    return Outcome(codes, out + err + errors, effects)


def assert_harmless(opened: Outcome, *allowed: Path) -> None:
    """Assert that nothing was started or connected to, and nothing written except below these directories."""
    assert opened.side_effects.started == []
    assert opened.side_effects.connected == []
    scratch = str(Path(tempfile.gettempdir(), "vaerun-"))  # scratch directory of a data source, removed at the end
    for path in opened.side_effects.written:
        below = any(Path(path).absolute().is_relative_to(folder) for folder in allowed)
        assert below or path.startswith(("/dev/null", scratch)), path
    assert "Traceback" not in opened.text


def edit_config(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a run's configuration, with a matching fingerprint."""
    path = run / ".hydra" / "config.yaml"
    plain = yaml.safe_load(path.read_text())
    change(plain)
    path.write_text(yaml.safe_dump(plain))
    sign(run, plain)


def write_fitting_checkpoint(run: Path) -> None:
    """Write a checkpoint that fits whatever model the configuration names."""
    opened, path = vaerun.load_run(run), run / "checkpoints" / "best.pt"
    model = build_model(opened.config.model, opened.data.spec, bool(opened.config.trainer.average))
    objective = build_objective(opened.config, model, len(opened.data.train))
    save_checkpoint(path, load_checkpoint(path) | {"objective": objective.state_dict()})


def sign(run: Path, plain: dict[str, Any]) -> None:
    record = json.loads((run / "result.json").read_text())
    record["fingerprint"] = fingerprint(
        plain | {"data": plain["data"] | {"root": None}}, record["protocol"]["data_sha256"]
    )
    (run / "result.json").write_text(json.dumps(record))


def edit_result(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads((run / "result.json").read_text())
    change(record)
    (run / "result.json").write_text(json.dumps(record))


def assert_rejected(run: Path, capsys: Any, cache: Path, *words: str) -> str:
    """Assert that load_run and vaerun-eval reject the run in one line, tables cope with it, and nothing does harm."""
    opened = open_all(run, capsys)
    assert (opened.codes["load_run"], opened.codes["eval"]) == (2, 2), opened.text
    assert set(opened.codes.values()) <= {0, 2}
    assert_harmless(opened, run, cache)
    for word in words:
        assert word in opened.text, opened.text
    return opened.text
