"""A finished (or interrupted) run from its directory, for Python."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vaerun.config.identity import fingerprint
from vaerun.config.schema import Settings
from vaerun.config.settings import check
from vaerun.data.dataset import ImageData
from vaerun.errors import InputError
from vaerun.run.build import Model, build_data, build_model, build_objective, resolve_device
from vaerun.run.memory_limits import AllocationLimit, MemoryLimitExceeded
from vaerun.run.result import read_result
from vaerun.run.smoke_test import blame_configuration, smoke_test
from vaerun.storage.checkpoint import CorruptCheckpoint, load, to_plain_dict
from vaerun.storage.paths import expand_user, find_escaping_link
from vaerun.storage.safe_pickle import number_type
from vaerun.storage.yaml_files import read_config
from vaerun.text import printable

_MEMORY_MARGIN = 256 << 20  # bytes that building a model may take beyond four times its checkpoint's tensors


@dataclass(frozen=True)
class Run:
    """What load_run gives.

    Attributes:
        folder: the run directory.
        config: its settings.
        result: its result.json.
    """

    folder: Path
    config: Settings
    result: dict[str, Any]
    device: torch.device

    @cached_property
    def data(self) -> ImageData:
        """Its data on the device: `train`, `validation`, `test`. Raises InputError where the data is not the run's."""
        data = build_data(self.config.data, self.device)
        recorded = str(self.result["protocol"].get("data_sha256"))
        if data.sha256 != recorded:
            raise InputError(
                f"{self.folder} was made on other data: {data.name} here has sha256 {data.sha256[:12]}..., the run's "
                f"had {printable(recorded[:12])}..."
            )
        return data

    @cached_property
    def model(self) -> Model:
        """Its model with the parameters of best.pt, in evaluation mode, once two images have gone through it.

        Raises InputError where the checkpoint is not the model's, or the model does not run.
        """
        data, path = self.data, self.folder / "checkpoints" / "best.pt"
        remedy = "bring back the file, or train the run again"
        try:
            state = to_plain_dict(load(path, self.device, self.folder)["objective"], "it holds no parameters")
            if not all(isinstance(value, torch.Tensor) for value in state.values()):
                raise CorruptCheckpoint("it holds no parameters")
            room = 4 * sum(value.nbytes for value in state.values()) + _MEMORY_MARGIN
        except (CorruptCheckpoint, KeyError) as error:
            raise InputError(f"cannot use {path} ({printable(error, 200)}): {remedy}") from error
        try:
            with blame_configuration(self.folder), AllocationLimit(room):
                model = build_model(self.config.model, data, bool(self.config.trainer.average))
                objective = build_objective(self.config, model, len(data.train))
        except MemoryLimitExceeded as error:
            raise InputError(
                f"{self.folder} names a model far larger than the parameters in {path}: they are not of one run"
            ) from error
        try:
            for name, own in objective.state_dict().items():
                if (number_type(state[name]) if name in state else number_type(own)) != number_type(own):
                    raise TypeError(f"{name} is of type {state[name].dtype}")
            objective.load_state_dict(state)
        except (KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise InputError(f"cannot use {path} ({printable(error, 200)}): {remedy}") from error
        model.eval().requires_grad_(False)
        smoke_test(model, data, self.folder)
        return model


def _has_interpolation(value: Any) -> bool:
    """Whether a parsed configuration holds an interpolation or a gap; in the file's text an escape could hide them."""
    if isinstance(value, dict):
        return any(_has_interpolation(v) for pair in value.items() for v in pair)
    if isinstance(value, list):
        return any(map(_has_interpolation, value))
    return isinstance(value, str) and ("${" in value or value == "???")


def load_run(folder: str | Path, device: str = "cpu", *, data_root: str | None = None) -> Run:
    """Open a run directory. It is read as plain values and tensors: no code of it runs.

    Arguments:
        folder: the run directory.
        device: as trainer.device.
        data_root: where the prepared data lies here; None: VAERUN_DATA, else the cache.

    Raises InputError for a directory that holds no run, or names parts outside vaerun and the trusted packages.
    """
    folder = expand_user(folder)
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"{folder} is no directory: name the run's directory")
    link = find_escaping_link(folder)
    if link is not None:  # a run makes none: what is read or written there is somebody else's
        raise InputError(f"{link} is a link that leads out of {folder}: put the file itself in its place")
    result = read_result(folder, folder)
    if result is None:
        raise InputError(f"{folder} holds no run (there is no result.json)")
    path = folder / ".hydra" / "config.yaml"
    try:
        plain = read_config(path, folder)
    except (OSError, ValueError) as error:
        why = printable(error, 200)
        raise InputError(f"cannot read {path} ({why}): bring back the file, or train the run again") from error
    if not isinstance(plain, dict) or not isinstance(plain.get("data"), dict) or _has_interpolation(plain):
        # vaerun writes resolved values; an interpolation could read environment variables of whoever opens it.
        raise InputError(f"{path} is no configuration that vaerun has written")
    plain["data"]["root"] = data_root
    try:
        settings = check(OmegaConf.create(plain))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        why = printable(error, 200)
        raise InputError(f"{path} is no configuration that vaerun has written ({why})") from error
    if fingerprint(plain, str(result["protocol"].get("data_sha256"))) != result["fingerprint"]:
        raise InputError(
            f"{path} is not the configuration that {folder / 'result.json'} was made with (or an earlier "
            "version of vaerun made them: train the run again)"
        )
    return Run(folder, settings, result, resolve_device(device))
