"""Counts that no run could reach are rejected before any work; those of real experiments are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.runs.adversarial_runs import Command
from support.runs.evaluating import SMALL, Evaluate

from vaerun.config.schema import Settings
from vaerun.config.validation import allowed_values, check_values, value_of

pytestmark = pytest.mark.usefixtures("command_environment")
ANNEALING = ("temperatures", "chains", "leapfrog_steps")
COUNTS = ["model.latent_dim", "estimator.samples", "evaluation.samples", "evaluation.generated.samples"]
COUNTS += [f"evaluation.annealing.{key}" for key in ANNEALING]
COUNTS += ["evaluation.gap.samples", "evaluation.gap.max_steps", "evaluation.noise.samples", "evaluation.noise.draws"]
COUNTS += ["evaluation.estimate.samples", "evaluation.estimate.repeats"]
COUNTS += ["sweep.jobs", "sweep.jobs_per_gpu", "sweep.together"]
MAXIMUM = {key: allowed.le for key, allowed in allowed_values().items() if allowed.le is not None}


def settings(key: str, value: Any) -> Settings:
    """Minimal complete settings with this value."""
    made = Settings()
    made.data.name = made.model.name = made.estimator.name = "x"
    made.model.likelihood, made.model.latent_dim, made.estimator.function = "gaussian", 2, {}
    made.trainer.epochs, made.trainer.batch_size, made.trainer.learning_rate = 1, 1, 0.1
    group, _, name = key.rpartition(".")
    setattr(value_of(made, group), name, value)
    return made


@pytest.mark.parametrize("key", COUNTS)
def test_a_job_that_would_never_end(here: Command, tmp_path: Path, key: str) -> None:
    code, out, err = here("--check", *SMALL, "model=vae", f"{key}={10**12}", f"output_dir={tmp_path / 'run'}")
    assert (code, out) == (2, "")
    assert err == f"vaerun: error: {key} must be at most {MAXIMUM[key]:.15g}, got {10**12}\n"
    assert not (tmp_path / "run").exists()


def test_of_an_evaluation(run: Path, evaluate: Evaluate) -> None:
    code, out, err = evaluate(f"run={run}", "evaluation.samples=1000000000000")
    assert (code, out) == (2, "")
    assert err == "vaerun-eval: error: evaluation.samples must be at most 1000000000, got 1000000000000\n"


@pytest.mark.parametrize("key", COUNTS)
def test_what_a_patient_person_asks_for(key: str) -> None:
    check_values(settings(key, 100_000))
    check_values(settings(key, int(MAXIMUM[key])))
