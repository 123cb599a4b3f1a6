"""A finished (or interrupted) run from its directory, for Python."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf

from vaerun.data.dataset import ImageData
from vaerun.errors import InputError
from vaerun.run.build import Model, build_data, build_model, build_objective, device_named
from vaerun.run.record import read_result
from vaerun.settings import Settings, check, fingerprint
from vaerun.training.checkpoint import Damaged, load


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
        if data.sha256 != self.result["protocol"]["data_sha256"]:
            raise InputError(
                f"{self.folder} was made on other data: {data.name} here has sha256 {data.sha256[:12]}..., the run's "
                f"had {str(self.result['protocol']['data_sha256'])[:12]}..."
            )
        return data

    @cached_property
    def model(self) -> Model:
        """Its model with the parameters of best.pt, in evaluation mode."""
        model = build_model(self.config.model, self.data, bool(self.config.trainer.average))
        objective = build_objective(self.config, model, len(self.data.train))
        path = self.folder / "checkpoints" / "best.pt"
        try:
            objective.load_state_dict(load(path, self.device)["objective"])
        except (Damaged, KeyError, RuntimeError) as error:
            why = " ".join(str(error).split())[:200]
            raise InputError(f"cannot use {path} ({why}): bring back the file, or train the run again") from error
        return model.eval().requires_grad_(False)


def _interpolates(value: Any) -> bool:
    """Whether a parsed configuration holds an interpolation; in the file's text an escape could hide it."""
    if isinstance(value, dict):
        return any(_interpolates(v) for pair in value.items() for v in pair)
    return any(map(_interpolates, value)) if isinstance(value, list) else isinstance(value, str) and "${" in value


def load_run(folder: str | Path, device: str = "cpu", *, data_root: str | None = None) -> Run:
    """Open a run directory. It is read as plain values and tensors: no code of it runs.

    Arguments:
        folder: the run directory.
        device: as trainer.device.
        data_root: where the prepared data lies here; None: VAERUN_DATA, else the cache.

    Raises InputError for a directory that holds no run, or names parts outside vaerun and the trusted packages.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is no directory: name the run's directory")
    result = read_result(folder)
    if result is None:
        raise InputError(f"{folder} holds no run (there is no result.json)")
    path = folder / ".hydra" / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
        plain = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"cannot read {path} ({why}): bring back the file, or train the run again") from error
    if not isinstance(plain, dict) or not isinstance(plain.get("data"), dict) or _interpolates(plain):
        # vaerun writes resolved values; an interpolation could read environment variables of whoever opens it.
        raise InputError(f"{path} is no configuration that vaerun has written")
    plain["data"]["root"] = data_root
    settings = check(OmegaConf.create(plain))
    if fingerprint(plain, str(result["protocol"].get("data_sha256"))) != result["fingerprint"]:
        raise InputError(
            f"{path} is not the configuration that {folder / 'result.json'} was made with (or an earlier "
            "version of vaerun made them: train the run again)"
        )
    return Run(folder, settings, result, device_named(device))
