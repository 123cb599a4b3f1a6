"""Opens run directories, finished or interrupted, from Python (`load_run`)."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vaerun.config.identity import fingerprint
from vaerun.config.schema import DataSettings, Settings
from vaerun.config.settings import to_settings
from vaerun.data.dataset import ImageData
from vaerun.data.spec import ImageSpec
from vaerun.defaults import own_defaults
from vaerun.errors import InputError
from vaerun.memory import reporting_out_of_memory
from vaerun.run.build import Model, build_data, build_model, build_objective, resolve_device
from vaerun.run.image_ids import read_image_ids
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
    """A run that was read from its directory; data and model are loaded at first use, the model without the data.

    Attributes:
        folder: the run directory.
        config: settings of the run.
        result: contents of result.json.
        device: device of data and model.
        data_path: where a data set with a path is now; None: where it was.
        data_changed: whether `data` may be other data than the run's.
    """

    folder: Path
    config: Settings
    result: dict[str, Any]
    device: torch.device
    data_path: str | None = None
    data_changed: bool = False

    @cached_property
    @_opening
    def data(self) -> ImageData:
        """The data set, with splits `train`, `validation` and `test`; raises InputError as `load_data` does."""
        return self.load_data(self.config.data)

    def load_data(self, settings: DataSettings) -> ImageData:
        """Load the run's data set under these settings, such as another size of the validation split.

        Raises InputError if it is not there, or has changed (unless `data_changed`).
        """
        data = build_data(replace(settings, path=self._find_data()), self.device)
        recorded = str(self.result["protocol"].get("data_sha256"))
        if data.sha256 != recorded and not self.data_changed:
            key = "root" if settings.path is None else "path"
            raise InputError(
                f"{self.folder} used other data: {data.name} has sha256 {data.sha256[:12]}... here and had "
                f"{printable(recorded[:12])}... there: give the place of the run's data by data.{key}=NEW (load_run: "
                f"data_{key}=NEW), or evaluate on these as other data by data.changed=true (data_changed=True)"
            )
        return data

    def _find_data(self) -> str | None:
        """Where the run's data are: a path that exists, or None for data without a path. Raises InputError."""
        path = self.config.data.path if self.data_path is None else self.data_path
        if path is None:
            return None
        place = expand_user(path)
        candidates = [place]
        if self.data_path is None and not place.is_absolute():  # as runs of earlier versions recorded it
            candidates.insert(0, _working_directory(self.folder) / place)
        found = next((p for p in candidates if os.path.exists(p)), None)
        if found is None:
            raise InputError(
                f"the data of {self.folder} are no longer at {printable(candidates[0], 200)}: give their place by "
                "data.path=NEW (load_run: data_path=NEW)"
            )
        return str(found)

    @property
    @_opening
    def ids(self) -> dict[str, np.ndarray]:
        """Row in the source (int) or file name (str) of each image of each split, in order; see `read_image_ids`."""
        return read_image_ids(self.folder, self.result)

    @cached_property
    @_opening
    @own_defaults()
    def model(self) -> Model:
        """The model with the parameters of best.pt, in evaluation mode, after a smoke test on two images.

        The data need not be there, except for runs of version 0.1.0, which do not record what a model must know of
        them. Raises InputError if the checkpoint does not fit the model, or the smoke test fails.
        """
        facts, path = self.result.get("dataset"), self.folder / "checkpoints" / "best.pt"
        data = self.data if facts is None else None
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
                images, count = self._recorded_images(facts) if data is None else (data.spec, len(data.train))
                model = build_model(self.config.model, images, bool(self.config.trainer.average))
                objective = build_objective(self.config, model, count)
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
        smoke_test(model, self.folder)
        return model

    def _recorded_images(self, facts: Any) -> tuple[ImageSpec, int]:
        """The images as `describe_data` recorded them, and the number of training images; their moments are unknown.

        The checkpoint holds what was made from the moments. Raises InputError for a damaged record.
        """
        settings = self.config.data
        try:
            shape, count, binary = facts["shape"], facts["images"]["train"], facts["binary"]
            integers = [type(n) for n in (*shape, count)] == [int] * 4
            if not (integers and min(*shape, count) >= 1 and isinstance(binary, bool)):
                raise ValueError(f"shape {shape}, {count} images, binary: {binary}")
            mean = torch.zeros(shape, dtype=torch.float32, device=self.device)
            spec = ImageSpec(settings.name, tuple(shape), len(facts["classes"]), binary, settings.logit, mean, 1.0)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{self.folder / 'result.json'} is damaged (dataset: {printable(error, 200)}): restore the file, or "
                "train the run again"
            ) from error
        return spec, count


def _has_interpolation(value: Any) -> bool:
    """Whether a configuration has interpolations or missing values. It must be parsed: escapes could hide them."""
    if isinstance(value, dict):
        return any(_has_interpolation(v) for pair in value.items() for v in pair)
    if isinstance(value, list):
        return any(map(_has_interpolation, value))
    return isinstance(value, str) and ("${" in value or value == "???")


def _working_directory(folder: Path) -> Path:
    """Where the command of a run was given, as Hydra recorded it; else the current directory."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return Path(read_config(folder / ".hydra" / "hydra.yaml", folder)["hydra"]["runtime"]["cwd"])
    return Path()


def _recorded_root(data: dict[str, Any]) -> str | None:
    """data.root as recorded, if it has the prepared data set."""
    root, name = data.get("root"), data.get("name")
    return root if isinstance(root, str) and os.path.isfile(f"{root}/{name}.npz") else None


@_opening
def load_run(
    folder: str | Path,
    device: str = "cpu",
    *,
    data_root: str | None = None,
    data_path: str | None = None,
    data_changed: bool = False,
) -> Run:
    """Open a run directory. Only plain values and tensors are read; no code from the directory is executed.

    Its data are read when `data` is used, and must be those of the run (by sha256), unless `data_changed`.

    Arguments:
        folder: the run directory.
        device: see trainer.device.
        data_root: directory of the prepared data; None: that of the run if they are still there, else VAERUN_DATA, else
            the cache.
        data_path: where the data of a run with data.path are now; None: where they were.
        data_changed: take other data, too.

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
    config["data"]["root"] = data_root or _recorded_root(config["data"])
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
    return Run(folder, settings, result, resolve_device(device), data_path, data_changed)
