"""Searches (hydra/sweeper=optuna): failed trials, resuming a killed search, the contents of its storage."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path
from typing import Any

import filelock
import pytest
import yaml
from support.sweeps.launchers import SHORT, eventually, jobs, needs, record, run, start, training, worker

needs("hydra_optuna_sweeper", "optuna")
pytestmark = pytest.mark.slow

SPACE = ["model.inference.step_size=tag(log,interval(0.001,0.1))", "trainer.learning_rate=choice(0.001,1e30)"]


def search(sweep: Path, trials: int) -> list[str]:
    """A search over SA-VAE's step size, and a learning rate with which about half of the trials diverge."""
    options = ["hydra/sweeper=optuna", f"hydra.sweeper.n_trials={trials}", "hydra.sweeper.sampler.seed=0"]
    return ["-m", *options, f"output_dir={sweep}", *SHORT, "model=sa_vae", "model.inference.steps=2", *SPACE]


def trials(sweep: Path) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SQLAlchemy's, about Optuna's calls
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            study = optuna.load_study(study_name="vaerun", storage=f"sqlite:///{sweep / 'search.db'}")
            return list(study.get_trials())
        except Exception:  # not created yet
            return []


def folder_of(sweep: Path, trial: Any) -> Path:
    words = {f"{key}={value}" for key, value in trial.params.items()}
    return next(folder for folder, overrides in jobs(sweep).items() if words <= set(overrides))


def states(sweep: Path) -> list[str]:
    return [trial.state.name for trial in trials(sweep)]


def current(sweep: Path) -> Path | None:
    """The job that trains now, once another trial has ended."""
    if not {"COMPLETE", "FAIL"} & set(states(sweep)):
        return None
    return next((folder for folder in jobs(sweep) if training(folder)), None)


def test_failed_trials_are_survived_and_a_killed_search_goes_on_where_it_was(
    env: dict[str, str], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    process = start(search(sweep, 6), tmp_path / "first.log", env)
    stopped = eventually(lambda: current(sweep), "a second trial", process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    eventually(lambda: worker(stopped) is None, "the end of the run that was left")
    before = trials(sweep)
    assert [trial.state.name for trial in before].count("RUNNING") == 1
    assert record(stopped)["status"] in ("interrupted", "ok", "failed")

    code, output = run(search(sweep, 6), tmp_path / "second.log", env)
    after = trials(sweep)
    counted = [trial for trial in after if "interrupted" not in trial.user_attrs]
    assert len(counted) == 6, output
    assert len(after) == 7
    for old, new in zip(before, after, strict=False):
        assert new.params == old.params
        if old.state.name != "RUNNING":
            assert (new.state, new.value) == (old.state, old.value)
    left = next(trial for trial in after if "interrupted" in trial.user_attrs)
    assert sum(trial.params == left.params for trial in counted) == 1  # repeated
    steps = [trial.params["model.inference.step_size"] for trial in counted]
    assert len(set(steps)) == 6  # with the same seed it would draw the first ones again

    complete = [trial for trial in counted if trial.state.name == "COMPLETE"]
    failed = [trial for trial in counted if trial.state.name == "FAIL"]
    assert complete
    assert failed
    assert len(complete) + len(failed) == 6
    for trial in complete:
        assert trial.value == record(folder_of(sweep, trial))["metrics"]["val/elbo"]
    for trial in failed:
        assert record(folder_of(sweep, trial))["status"] == "failed"
    assert code == 1
    best = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert best["best_value"] == max(trial.value for trial in complete)

    run(search(sweep, 6), tmp_path / "third.log", env)
    assert len(trials(sweep)) == 7
    run(search(sweep, 7), tmp_path / "fourth.log", env)
    assert len(trials(sweep)) == 8


def test_a_search_in_which_nothing_works_says_so(env: dict[str, str], tmp_path: Path) -> None:
    words = [w for w in search(tmp_path / "sweep", 2) if not w.startswith("trainer.learning_rate")]
    code, output = run([*words, "trainer.learning_rate=1e30"], tmp_path / "log", env)
    assert code == 1
    assert states(tmp_path / "sweep") == ["FAIL", "FAIL"]
    assert "no trial of the search was completed" in output
    assert "Traceback" not in output


def test_two_searches_in_one_folder_are_refused(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    with filelock.FileLock(tmp_path / "sweep" / ".search.lock"):
        code, output = run(search(tmp_path / "sweep", 1), tmp_path / "log", env)
    assert code == 2
    assert "another search" in output
    assert "Traceback" not in output
    assert not jobs(tmp_path / "sweep")
