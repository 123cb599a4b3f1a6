"""A sweep's job where another launcher (Slurm's, Ray's) runs it."""

from __future__ import annotations

from pathlib import Path

from vaerun.config.settings import Settings
from vaerun.launch.process import Job
from vaerun.launch.supervise import run_remote
from vaerun.sweep.plan import read_plan, relative
from vaerun.sweep.sweep import validation_metric


def run_job(settings: Settings, folder: Path, words: list[str], hydra: str) -> float | None:
    """Run it as a child process and return the validation metric. Raises InputError or RunError with the reason."""
    return validation_metric(run_remote(Job(settings, folder, words, hydra, _fingerprint(folder))))


def _fingerprint(folder: Path) -> str:
    """As it was planned: the plan stands in the sweep's folder, somewhere above."""
    for above in folder.parents:
        plan = read_plan(above)
        if plan is not None:
            place = relative(folder, above)
            return next((str(e.get("fingerprint", "")) for e in plan["jobs"] if e["folder"] == place), "")
    return ""
