"""Opens run directories, finished or interrupted, from Python (`load_run`)."""

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
from vaerun.config.settings import to_settings
from vaerun.data.dataset import ImageData
from vaerun.defaults import own_defaults
from vaerun.errors import InputError
from vaerun.memory import reporting_out_of_memory
from vaerun.run.build import Model, build_data, build_model, build_objective, resolve_device
from vaerun.run.memory_limits import AllocationLimit, MemoryLimitExceeded
from vaerun.run.result import read_result
from vaerun.run.smoke_test import blame_configuration, smoke_test
from vaerun.storage.checkpoint import CorruptCheckpoint, load_checkpoint, to_plain_dict
from vaerun.storage.paths import expand_user, find_escaping_link
from vaerun.storage.safe_pickle import number_type
from vaerun.storage.yaml_files import read_config
from vaerun.text import printable

_opening = reporting_out_of_memory(InputError, "memory ran out while opening the run: use a machine with more memory")
_MEMORY_MARGIN = 256 << 20  # bytes that building a model may allocate beyond four times the size of its checkpoint


@dataclass(frozen=True)
class Run:
    """A run that was read from its directory; data and model are loaded at first use.

    Attributes:
        folder: the run directory.
        config: settings of the run.
        result: contents of result.json.
        device: device of data and model.
    """

    folder: Path
    config: Settings
    result: dict[str, Any]
    device: torch.device

    @cached_property
    @_opening
    def data(self) -> ImageData:
        """The data set, with splits `train`, `validation` and `test`. Raises InputError if the data has changed."""
        data = build_data(self.config.data, self.device)
        recorded = str(self.result["protocol"].get("data_sha256"))
        if data.sha256 != recorded:
            raise InputError(
                f"{self.folder} used other data: {data.name} has sha256 {data.sha256[:12]}... here and had "
                f"{printable(recorded[:12])}... there: point VAERUN_DATA to the run's data"
            )
        return data

    @cached_property
    @_opening
    @own_defaults()
    def model(self) -> Model:
        """The model with the parameters of best.pt, in evaluation mode, after a smoke test on two images.

        Raises InputError if the checkpoint does not fit the model, or the smoke test fails.
        """
        data, path = self.data, self.folder / "checkpoints" / "best.pt"
        remedy = "restore the file, or train the run again"
        try:
            state = to_plain_dict(
                load_checkpoint(path, self.device, self.folder)["objective"], "it holds no parameters"
            )
            if not all(isinstance(value, torch.Tensor) for value in state.values()):
                raise CorruptCheckpoint("it holds no parameters")
            limit = 4 * sum(value.nbytes for value in state.values()) + _MEMORY_MARGIN
        except (CorruptCheckpoint, KeyError) as error:
            raise InputError(f"cannot use {path} ({printable(error, 200)}): {remedy}") from error
        try:
            devices = [self.device] if self.device.type == "cuda" else []
            with (
                blame_configuration(self.folder),
                AllocationLimit(limit),
                torch.random.fork_rng(devices),  # initial parameters are drawn, and then overwritten
            ):
                model = build_model(self.config.model, data, bool(self.config.trainer.average))
                objective = build_objective(self.config, model, len(data.train))
        except MemoryLimitExceeded as error:
            raise InputError(
                f"the configuration of {self.folder} builds a model far larger than the parameters in {path}: they are "
                "from different runs; restore the file, or train the run again"
            ) from error
        try:
            for name, value in objective.state_dict().items():
                if name in state and number_type(state[name]) != number_type(value):
                    raise TypeError(f"{name} is of type {state[name].dtype}")
            objective.load_state_dict(state)
        except (KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise InputError(f"cannot use {path} ({printable(error, 200)}): {remedy}") from error
        model.eval().requires_grad_(False)
        smoke_test(model, data, self.folder)
        return model


def _has_interpolation(value: Any) -> bool:
    """Whether a configuration has interpolations or missing values. It must be parsed: escapes could hide them."""
    if isinstance(value, dict):
        return any(_has_interpolation(v) for pair in value.items() for v in pair)
    if isinstance(value, list):
        return any(map(_has_interpolation, value))
    return isinstance(value, str) and ("${" in value or value == "???")


@_opening
def load_run(folder: str | Path, device: str = "cpu", *, data_root: str | None = None) -> Run:
    """Open a run directory. Only plain values and tensors are read; no code from the directory is executed.

    Arguments:
        folder: the run directory.
        device: see trainer.device.
        data_root: directory of the prepared data; None: VAERUN_DATA, else the cache.

    Raises InputError for a directory that contains no run, or whose configuration names code outside vaerun and the
    trusted packages.
    """
    folder = expand_user(folder)
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"{folder} is not a directory: name a run directory")
    link = find_escaping_link(folder)
    if link is not None:  # vaerun creates no such links, and following one would touch unrelated files
        raise InputError(f"{link} is a link that leads out of {folder}: replace it by the file itself")
    result = read_result(folder, folder)
    if result is None:
        raise InputError(f"{folder} is not a run directory (it has no result.json): name a run directory")
    path = folder / ".hydra" / "config.yaml"
    try:
        config = read_config(path, folder)
    except (OSError, ValueError) as error:
        reason = printable(error, 200)
        raise InputError(f"cannot read {path} ({reason}): restore the file, or train the run again") from error
    if not isinstance(config, dict) or not isinstance(config.get("data"), dict) or _has_interpolation(config):
        # vaerun writes resolved values; an interpolation could read the user's environment variables.
        raise InputError(f"{path} was not written by vaerun: restore the file, or train the run again")
    config["data"]["root"] = data_root
    try:
        settings = to_settings(OmegaConf.create(config))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = printable(error, 200)
        raise InputError(
            f"{path} was not written by vaerun ({reason}): restore the file, or train the run again"
        ) from error
    if fingerprint(config, str(result["protocol"].get("data_sha256"))) != result["fingerprint"]:
        raise InputError(
            f"{path} is not the configuration of {folder / 'result.json'}, or an earlier version of vaerun wrote them: "
            "restore the file, or train the run again"
        )
    return Run(folder, settings, result, resolve_device(device))
