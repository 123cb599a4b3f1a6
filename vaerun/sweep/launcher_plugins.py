"""What Hydra's plugins for other machines and for searches lack; they are extras, and none of them need be installed.

Presets: a file of configs/hydra/ takes the place of what a plugin declares under the same name.
Lost jobs: submitit's launcher and Ray's wait for their jobs in order, and give up at the first whose own process was
lost (cancelled, out of memory, its node gone), although the others go on; with Ray they are even ended, because the
process that submitted them leaves. Here a lost job is one failed job.
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

from vaerun.config.plugins import own_config_folder
from vaerun.errors import RunError

EXTRAS = {"hydra_submitit_launcher": "slurm", "hydra_ray_launcher": "ray", "hydra_optuna_sweeper": "optuna"}


def own_presets_first() -> None:
    """Let configs/hydra/ take the place of what plugins declare under the same names.

    Hydra would validate the one against the other, with a warning (launchers), or refuse both (Optuna's sweeper).
    """
    Plugins.instance()  # imports the plugins, which declare
    declared = ConfigStore.instance().repo.get("hydra", {})
    for preset in (own_config_folder() / "hydra").glob("*/*.yaml"):
        declared.get(preset.parent.name, {}).pop(preset.name, None)


def missing_extra(error: BaseException) -> str | None:
    """The line for a preset whose plugin is not installed; None for any other error."""
    text = str(error)
    if "hydra/sweeper/sampler" in text and "Could not find" in text:
        return "hydra/sweeper=optuna needs an extra: pip install 'vaerun[optuna]'"
    for package, extra in EXTRAS.items():
        if f"hydra_plugins.{package}." in text and text.startswith(("Unknown plugin class", "Could not instantiate")):
            kind = "sweeper" if extra == "optuna" else "launcher"
            name = {"slurm": "submitit_slurm"}.get(extra, extra)
            return f"hydra/{kind}={name} needs an extra: pip install 'vaerun[{extra}]'"
    return None


def _lost(error: BaseException) -> JobReturn:
    first = " ".join(str(error).split(". ")[0].split())
    made = JobReturn(status=JobStatus.FAILED)
    made.return_value = RunError(f"{type(error).__name__}: {first}")
    return made


@contextmanager
def lost_jobs_fail(target: str) -> Iterator[None]:
    """While active, the launcher (its class) returns a failed job for one that was lost, and waits for the others."""
    if target.startswith("hydra_plugins.hydra_submitit_launcher."):
        from submitit.core import core, utils

        lost: Any = (utils.UncompletedJobError, utils.FailedJobError)
        job: Any = core.Job
        waited = job.results

        def results(self: Any) -> list[Any]:
            try:
                return waited(self)
            except lost as error:
                return [_lost(error)]

        job.results = results
        try:
            yield
        finally:
            job.results = waited
    elif target.startswith("hydra_plugins.hydra_ray_launcher."):
        module: Any = importlib.import_module("hydra_plugins.hydra_ray_launcher._core")
        ray = module.ray

        def get(reference: Any) -> Any:
            try:
                return ray.get(reference)
            except ray.exceptions.RayError as error:
                return _lost(error)

        module.ray = SimpleNamespace(get=get)
        try:
            yield
        finally:
            module.ray = ray
    else:
        yield
