"""Hydra's own settings, as far as they write into a run directory, which only the lock makes this run's."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf, open_dict

from vaerun.errors import InputError

CONFIG_FOLDER = ".hydra"  # written by vaerun itself


def write_later(config: DictConfig) -> None:
    """Let Hydra open its log files at the first message, and leave the configuration to vaerun.

    Raises InputError for another folder for the configuration.
    """
    folder = config.hydra.output_subdir
    if folder not in (None, CONFIG_FOLDER):
        raise InputError(
            f"hydra.output_subdir={folder}: a run's configuration is always written to {CONFIG_FOLDER}: leave it out"
        )
    with open_dict(config.hydra):
        config.hydra.output_subdir = None
        for handler in (OmegaConf.select(config, "hydra.job_logging.handlers") or {}).values():
            if "filename" in handler:
                handler.delay = True
