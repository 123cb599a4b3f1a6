"""Entry point of sweep jobs started by other launchers (Slurm, Ray)."""

from __future__ import annotations

from pathlib import Path

from vaerun.config.schema import Settings
from vaerun.launch.job import Job
from vaerun.launch.supervise import run_remote
from vaerun.sweep.plan import read_plan, relative_path
from vaerun.sweep.sweep import validation_metric


def run_job(settings: Settings, folder: Path, overrides: list[str], hydra: str) -> float | None:
    """Run the job in a child process and return its validation metric. Raises InputError or RunError."""
    return validation_metric(run_remote(Job(settings, folder, overrides, hydra, _planned_fingerprint(folder))))


def _planned_fingerprint(folder: Path) -> str:
    """The job's fingerprint in the sweep's plan, which lies in a parent folder; "" if there is no plan."""
    for parent in folder.parents:
        plan = read_plan(parent)
        if plan is not None:
            name = relative_path(folder, parent)
            return next((str(e.get("fingerprint", "")) for e in plan["jobs"] if e["folder"] == name), "")
    return ""
