"""Fixes for Hydra's optional plugins: launchers for other machines, and the Optuna sweeper.

Presets: a file in configs/hydra/ replaces the config that a plugin registers under the same name.
Lost jobs: the launchers of submitit and Ray wait for their jobs in order and give up at the first one whose process is
lost (cancelled, out of memory, node failure). The remaining jobs are then unsupervised or, with Ray, killed, because
the submitting process exits. Here a lost job counts as one failed job.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus

from vaerun.config.plugins import builtin_config_dir
from vaerun.errors import RunError

EXTRAS = {"hydra_submitit_launcher": "slurm", "hydra_ray_launcher": "ray", "hydra_optuna_sweeper": "optuna"}


def prefer_own_presets() -> None:
    """Let the files of configs/hydra/ replace the configs that plugins register under the same names.

    Hydra would validate one against the other with a warning (launchers), or reject both (Optuna sweeper).
    """
    Plugins.instance()  # imports the plugins, which register their configs
    declared = ConfigStore.instance().repo.get("hydra", {})
    for preset in (builtin_config_dir() / "hydra").glob("*/*.yaml"):
        declared.get(preset.parent.name, {}).pop(preset.name, None)


def missing_extra(error: BaseException) -> str | None:
    """The error line for a preset whose plugin is not installed, or None for other errors."""
    text = str(error)
    if "hydra/sweeper/sampler" in text and "Could not find" in text:
        return "hydra/sweeper=optuna needs an extra: pip install 'vaerun[optuna]'"
    for package, extra in EXTRAS.items():
        if f"hydra_plugins.{package}." in text and text.startswith(("Unknown plugin class", "Could not instantiate")):
            group = "sweeper" if extra == "optuna" else "launcher"
            name = {"slurm": "submitit_slurm"}.get(extra, extra)
            return f"hydra/{group}={name} needs an extra: pip install 'vaerun[{extra}]'"
    return None


def _failed_job(error: BaseException) -> JobReturn:
    first_sentence = " ".join(str(error).split(". ")[0].split())
    returned = JobReturn(status=JobStatus.FAILED)
    returned.return_value = RunError(f"{type(error).__name__}: {first_sentence}")
    return returned


@contextmanager
def tolerate_lost_jobs(launcher_module: str) -> Iterator[None]:
    """While active, the launcher of this module returns lost jobs as failed ones and waits for the others."""
    if launcher_module.startswith("hydra_plugins.hydra_submitit_launcher."):
        from submitit.core import core, utils

        lost: Any = (utils.UncompletedJobError, utils.FailedJobError)
        job: Any = core.Job
        original = job.results

        def results(self: Any) -> list[Any]:
            try:
                return original(self)
            except lost as error:
                return [_failed_job(error)]

        job.results = results
        try:
            yield
        finally:
            job.results = original
    elif launcher_module.startswith("hydra_plugins.hydra_ray_launcher."):
        module: Any = importlib.import_module("hydra_plugins.hydra_ray_launcher._core")
        ray = module.ray

        def get(reference: Any) -> Any:
            try:
                return ray.get(reference)
            except ray.exceptions.RayError as error:
                return _failed_job(error)

        module.ray = SimpleNamespace(get=get)
        try:
            yield
        finally:
            module.ray = ray
    else:
        yield
