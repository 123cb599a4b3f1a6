"""What the tests of hostile and damaged input share: all ways to open a run directory, and what they did meanwhile."""

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
from vaerun.storage.checkpoint import load, save

FORMATS = (["--format", "md"], ["--format", "csv"], ["--list", "--format", "csv"], ["--list"])
COMPARED = (
    ["--rows", "model"],
    ["--rows", "model", "--format", "csv"],
    ["--rows", "model", "--format", "tex"],
    ["--rows", "model", "--paired", "--mix", "all"],
)


@dataclass
class Deeds:
    """What Python was asked to do: programs started, addresses spoken to, files opened for writing."""

    started: list[str] = field(default_factory=list)
    spoken: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)


_watching: list[Deeds] = []
_STARTS = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
}
_CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    deeds = _watching[-1]
    if event in _STARTS:
        deeds.started.append(f"{event} {arguments[:2]}")
    elif event == "socket.connect":
        deeds.spoken.append(str(arguments[1:]))
    elif event in _CHANGES and event != "shutil.rmtree" and isinstance(arguments[-1], int) and arguments[-1] >= 0:
        return  # relative to an open folder: shutil.rmtree at work, whose own event came before
    elif event in _CHANGES:
        deeds.written += [str(a) for a in arguments[: 2 if event == "os.rename" else 1]]
    elif event == "open":
        path, mode, flags = arguments
        if isinstance(path, str | bytes) and (set(mode or "") & set("wxa+") or (mode is None and flags & 3)):
            deeds.written.append(path if isinstance(path, str) else path.decode())


_heard = False


@contextmanager
def watched() -> Iterator[Deeds]:
    """What happens inside; an audit hook stays for ever, so there is one."""
    global _heard
    if not _heard:
        sys.addaudithook(_hear)
        _heard = True
    _watching.append(Deeds())
    try:
        yield _watching[-1]
    finally:
        _watching.pop()


def peak_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass
class Opened:
    """How each way to open a directory ended: exit code (2: InputError), and all that was printed."""

    codes: dict[str, int]
    text: str
    deeds: Deeds


def open_all(folder: Path, capsys: Any, ways: tuple[str, ...] = ("load_run", "eval", "table")) -> Opened:
    """Open a run directory in all ways: load_run, vaerun-eval and vaerun-table in all formats."""
    codes, errors = {}, ""
    capsys.readouterr()
    with watched() as deeds:
        if "load_run" in ways:
            try:
                vaerun.load_run(folder).model  # noqa: B018
                codes["load_run"] = 0
            except InputError as error:
                codes["load_run"] = 2
                errors += f"vaerun: error: {error}"
        if "eval" in ways:
            codes["eval"] = evaluate.main([f"run={folder}", "seed=3"])
        if "table" in ways:
            for words in (*FORMATS, *COMPARED):
                codes[f"table {' '.join(words)}"] = table.main([str(folder), *words])
    out, err = capsys.readouterr()
    return Opened(codes, out + err + errors, deeds)


def innocent(opened: Opened, *allowed: Path) -> None:
    """Nothing was started nor asked of the network, and nothing written but below these folders."""
    assert opened.deeds.started == []
    assert opened.deeds.spoken == []
    scratch = str(Path(tempfile.gettempdir(), "vaerun-"))  # a folder of a source's own, empty again at the end
    for path in opened.deeds.written:
        below = any(Path(path).absolute().is_relative_to(place) for place in allowed)
        assert below or path.startswith(("/dev/null", scratch)), path
    assert "Traceback" not in opened.text


def with_config(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """A stranger's configuration, with the fingerprint that belongs to it."""
    path = run / ".hydra" / "config.yaml"
    plain = yaml.safe_load(path.read_text())
    change(plain)
    path.write_text(yaml.safe_dump(plain))
    sign(run, plain)


def with_fitting_checkpoint(run: Path) -> None:
    """Parameters of the very model that the configuration names, whatever that is."""
    opened, path = vaerun.load_run(run), run / "checkpoints" / "best.pt"
    model = build_model(opened.config.model, opened.data, bool(opened.config.trainer.average))
    objective = build_objective(opened.config, model, len(opened.data.train))
    save(path, load(path) | {"objective": objective.state_dict()})


def sign(run: Path, plain: dict[str, Any]) -> None:
    record = json.loads((run / "result.json").read_text())
    record["fingerprint"] = fingerprint(
        plain | {"data": plain["data"] | {"root": None}}, record["protocol"]["data_sha256"]
    )
    (run / "result.json").write_text(json.dumps(record))


def with_record(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads((run / "result.json").read_text())
    change(record)
    (run / "result.json").write_text(json.dumps(record))


def refused(run: Path, capsys: Any, cache: Path, *words: str) -> str:
    """load_run and vaerun-eval refuse in one line, the tables do what they can; nobody does harm."""
    opened = open_all(run, capsys)
    assert (opened.codes["load_run"], opened.codes["eval"]) == (2, 2), opened.text
    assert set(opened.codes.values()) <= {0, 2}
    innocent(opened, run, cache)
    for word in words:
        assert word in opened.text, opened.text
    return opened.text
