"""Checkpoints: mappings from names to states, written atomically and read without running code from the file.

Training resumes from `last.pt`. The one before it is kept as `previous.pt`, so that a damaged file costs one interval.
`best.pt` holds the parameters with the best validation bound so far.
"""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vaerun.errors import InputError, RunError
from vaerun.memory import is_out_of_memory, reporting_out_of_memory
from vaerun.storage.atomic import fsync_dir, write_atomically
from vaerun.storage.safe_pickle import read_tensors
from vaerun.text import printable

RESUMABLE = ("last.pt", "previous.pt")
"""Checkpoints that training resumes from, newest first."""


class CorruptCheckpoint(Exception):
    """A checkpoint cannot be read; the message is the cause."""


def save_checkpoint(path: Path, state: dict[str, Any], backup: Path | None = None) -> None:
    """Write a state of tensors and plain values; the previous file at `path` is kept as `backup`."""
    shortage = f"memory ran out while writing {path}: lower the model's size"
    if path.exists():
        shortage += ", or run the same command again with more memory: what was written before is intact"
    with reporting_out_of_memory(RunError, shortage):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(path, buffer.getbuffer(), backup)


def load_checkpoint(path: Path, device: torch.device | str = "cpu", root: Path | None = None) -> dict[str, Any]:
    """Read a checkpoint of tensors and plain values only.

    Raises CorruptCheckpoint, also for a wrong checksum, a file that declares more data than it contains, and a link
    that points outside the directory `root`.
    """
    try:
        state = read_tensors(path, device, root)
    except Exception as error:  # zipfile, pickle and torch raise a dozen exception types for damaged files
        if is_out_of_memory(error):  # the file may be sound
            raise
        raise CorruptCheckpoint(printable(error, 200) or type(error).__name__) from error
    return to_plain_dict(state, "not a checkpoint of vaerun")


def to_plain_dict(state: Any, message: str) -> dict[str, Any]:
    """Convert a mapping read from a file to a plain dict, since a crafted OrderedDict may shadow its own methods.

    Raises CorruptCheckpoint with this message for any other type.
    """
    if type(state) not in (dict, OrderedDict):
        raise CorruptCheckpoint(message)
    return dict(dict.items(state))


class CheckpointManager:
    """The checkpoints of one run.

    Arguments:
        folder: `checkpoints/` of the run directory; created by the first save.
        fingerprint: fingerprint of the run; files with a different one belong to another run.
        warn: called with one line if a damaged file is skipped.
    """

    def __init__(self, folder: Path, fingerprint: str, warn: Callable[[str], object]) -> None:
        self.folder, self.fingerprint, self.warn = folder, fingerprint, warn
        self._last_is_valid: bool | None = None  # None: unknown

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from, be it valid or not."""
        return any((self.folder / name).exists() for name in RESUMABLE)

    def save_last(self, state: dict[str, Any]) -> None:
        """Write last.pt, keeping the one before as previous.pt.

        A damaged last.pt does not replace previous.pt, the only valid checkpoint until the new one is on disk.
        """
        self._create_folder()
        last = self.folder / "last.pt"
        if self._last_is_valid is None and last.exists():
            self._last_is_valid = self._read(last, "cpu")[0] is not None
        backup = self.folder / "previous.pt" if self._last_is_valid else None
        save_checkpoint(last, state | {"fingerprint": self.fingerprint}, backup)
        self._last_is_valid = True

    def save_best(self, state: dict[str, Any]) -> None:
        """Write best.pt."""
        self._create_folder()
        save_checkpoint(self.folder / "best.pt", state | {"fingerprint": self.fingerprint})

    def _create_folder(self) -> None:
        if self.folder.exists():
            return
        try:
            self.folder.mkdir(exist_ok=True)  # without parents: the run directory must still exist
            fsync_dir(self.folder.parent)
        except OSError as error:
            raise RunError(f"cannot create {self.folder}: {error.strerror or error}") from error

    def load_last(self, device: torch.device | str) -> dict[str, Any] | None:
        """Load the newest valid state; None if there is no checkpoint at all.

        Raises InputError if there are files but none is valid.
        """
        causes = []
        for name in RESUMABLE:
            path = self.folder / name
            if not path.exists():
                continue
            state, cause = self._read(path, device)
            if name == "last.pt":
                self._last_is_valid = state is not None
            if state is None:
                causes.append(f"{path}: {cause}")
                continue
            for cause in causes:
                self.warn(f"skipped a damaged checkpoint ({cause}); resuming from {name}")
            return state
        if causes:
            raise InputError(
                f"no valid checkpoint to resume from ({'; '.join(causes)}): remove {self.folder} to restart this run"
            )
        return None

    def _read(self, path: Path, device: torch.device | str) -> tuple[dict[str, Any] | None, str]:
        """Return (state, '') for a valid checkpoint of this run, otherwise (None, cause)."""
        try:
            state = load_checkpoint(path, device)
            if state.get("fingerprint") != self.fingerprint:
                raise CorruptCheckpoint("it belongs to another configuration")
        except CorruptCheckpoint as error:
            return None, str(error)
        return state, ""


class NullCheckpointManager:
    """A CheckpointManager that writes nothing, because another process of the run does."""

    def save_last(self, state: dict[str, Any]) -> None: ...
    def save_best(self, state: dict[str, Any]) -> None: ...


def load_from_other_run(path: Path, device: torch.device | str) -> tuple[dict[str, Any], dict[str, str]]:
    """Load the checkpoint, or the last one of a run directory, named by `trainer.resume`; also return its provenance.

    State specific to the other run is dropped: log positions, best validation bound (perhaps on other data), patience
    and time. A validation is due first, so that the initial parameters can be selected as the best, too.

    Raises InputError if the checkpoint cannot be used.
    """
    if path.is_dir():
        path = path / "checkpoints" / "last.pt"
    if not path.exists():
        raise InputError(f"trainer.resume: there is no checkpoint {path}: use auto, never or an existing path")
    try:
        state = load_checkpoint(path, device)
    except CorruptCheckpoint as error:
        raise InputError(f"trainer.resume: cannot read the checkpoint {path}: {error}") from error
    progress = state.get("progress")
    if not {"objective", "optimisers"} <= state.keys() or not isinstance(progress, dict) or "step" not in progress:
        raise InputError(f"trainer.resume: {path} is not a training checkpoint: name a last.pt")
    state |= {"progress": {"step": progress["step"], "validation_due": True}, "log": None}
    state["metrics"] = {"sums": {}, "count": 0}
    return state, {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
