"""Checkpoints: a mapping from names to states, written whole or not at all, read without running code from the file.

`last.pt` is where training goes on; the one before it stays as `previous.pt`, so a damaged file costs one interval.
`best.pt` holds the parameters with the best validation bound so far.
"""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from vaerun.errors import InputError, RunError
from vaerun.storage.atomic import sync_folder, write_atomically
from vaerun.storage.safe_pickle import read_tensors
from vaerun.text import printable

LAST = ("last.pt", "previous.pt")
"""Where training goes on, the newest first."""


class CorruptCheckpoint(Exception):
    """A checkpoint file cannot be read; the message is the cause."""


def save(path: Path, state: dict[str, Any], keep: Path | None = None) -> None:
    """Write a state of tensors and plain values; what was at `path` stays under the name `keep`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue(), keep)


def load(path: Path, device: torch.device | str = "cpu", within: Path | None = None) -> dict[str, Any]:
    """Read a checkpoint of tensors and plain values only.

    Raises Damaged, also where a checksum does not fit, where it claims more than it holds, or where it is a link that
    leads out of the folder `within`.
    """
    try:
        state = read_tensors(path, device, within)
    except Exception as error:  # zipfile, pickle and torch know a dozen kinds for damage
        raise CorruptCheckpoint(printable(error, 200) or type(error).__name__) from error
    return plain(state, "it holds no checkpoint of vaerun's")


def plain(state: Any, otherwise: str) -> dict[str, Any]:
    """A dictionary of a file, as one without attributes: a file can give an OrderedDict some in its methods' place.

    Raises Damaged with the message `otherwise` for anything else.
    """
    if type(state) not in (dict, OrderedDict):
        raise CorruptCheckpoint(otherwise)
    return dict(dict.items(state))


class CheckpointManager:
    """The checkpoints of one run.

    Arguments:
        folder: `checkpoints/` of the run directory; made when first written to.
        fingerprint: of the run; a file with another one is not this run's.
        warn: called with one line when a damaged file is passed over.
    """

    def __init__(self, folder: Path, fingerprint: str, warn: Any) -> None:
        self.folder, self.fingerprint, self.warn = folder, fingerprint, warn
        self._good: bool | None = None  # whether last.pt can be gone on from; None: not known

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to go on from, good or not."""
        return any((self.folder / name).exists() for name in LAST)

    def save_last(self, state: dict[str, Any]) -> None:
        """Make `state` the place to go on from, keeping the one before as previous.pt.

        A damaged one is not kept: previous.pt is the good one then, until the new one is on the disk.
        """
        self._make_folder()
        last = self.folder / "last.pt"
        if self._good is None and last.exists():
            self._good = self._read(last, "cpu")[0] is not None
        keep = self.folder / "previous.pt" if self._good else None
        save(last, state | {"fingerprint": self.fingerprint}, keep)
        self._good = True

    def save_best(self, state: dict[str, Any]) -> None:
        """Write best.pt."""
        self._make_folder()
        save(self.folder / "best.pt", state | {"fingerprint": self.fingerprint})

    def _make_folder(self) -> None:
        if self.folder.exists():
            return
        try:
            self.folder.mkdir(exist_ok=True)  # the run's own folder must be there still
            sync_folder(self.folder.parent)
        except OSError as error:
            raise RunError(f"cannot make {self.folder}: {error.strerror or error}") from error

    def load_last(self, device: torch.device | str) -> dict[str, Any] | None:
        """The newest good state, or None when there is no checkpoint at all.

        Raises InputError when there are files but none is good.
        """
        causes = []
        for name in LAST:
            path = self.folder / name
            if not path.exists():
                continue
            state, cause = self._read(path, device)
            if name == "last.pt":
                self._good = state is not None
            if state is None:
                causes.append(f"{path}: {cause}")
                continue
            for cause in causes:
                self.warn(f"passed over a damaged checkpoint ({cause}); going on from {name}")
            return state
        if causes:
            raise InputError(
                f"no good checkpoint to go on from ({'; '.join(causes)}): remove {self.folder} to start this run again"
            )
        return None

    def _read(self, path: Path, device: torch.device | str) -> tuple[dict[str, Any] | None, str]:
        """The state of this run's in a file, or None and why there is none."""
        try:
            state = load(path, device)
            if state.get("fingerprint") != self.fingerprint:
                raise CorruptCheckpoint("it belongs to another configuration")
        except CorruptCheckpoint as damage:
            return None, str(damage)
        return state, ""


def load_named(path: Path, device: torch.device | str) -> tuple[dict[str, Any], dict[str, str]]:
    """The checkpoint (or the last one of the run directory) that the user named, and what to record of it.

    What belongs to the other run alone is taken out: its records, its best validation bound (of its data, perhaps), its
    patience, its time. A validation is due first, so that the parameters started from can be this run's best too.

    Raises InputError if it is no good.
    """
    if path.is_dir():
        path = path / "checkpoints" / "last.pt"
    if not path.exists():
        raise InputError(f"trainer.resume is auto, never or a path, and there is no checkpoint {path}")
    try:
        state = load(path, device)
    except CorruptCheckpoint as damage:
        raise InputError(f"trainer.resume: cannot read the checkpoint {path}: {damage}") from damage
    progress = state.get("progress")
    if not {"objective", "optimisers"} <= state.keys() or not isinstance(progress, dict) or "step" not in progress:
        raise InputError(f"trainer.resume: {path} is no training checkpoint (name a last.pt)")
    state |= {"progress": {"step": progress["step"], "validation_due": True}, "log": None}
    state["metrics"] = {"sums": {}, "count": 0}
    return state, {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
