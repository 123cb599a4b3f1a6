"""Going on with a search: what Optuna's sweeper for Hydra does not do itself.

It loads the study that its storage holds, and then runs n_trials more; trials that a killed process left running stay
so for ever; and a sampler with a seed draws again what it drew at the first start. Here n_trials counts those of
earlier starts, what was left is tried again with the same values (so that its run goes on from its checkpoint, or is
only read), and the seed moves on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
from omegaconf import DictConfig, OmegaConf, open_dict

from vaerun.errors import InputError, RunError

SWEEPER = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
INTERRUPTED = "interrupted"  # attribute of a trial that was left, and is tried again as another


class Search:
    """A sweeper of Optuna's that goes on where its study's storage stands.

    Arguments:
        config: Hydra's whole configuration.
        make: the plugin's sweeper from a configuration.

    Raises InputError where another search works in the same folder, or its storage cannot be read.
    """

    def __init__(self, config: DictConfig, make: Callable[[DictConfig], Any]) -> None:
        self.lock = _hold(Path(str(config.hydra.sweep.dir)))
        self.sweeper = config.hydra.sweeper
        try:
            if self.sweeper.storage is not None:
                config = self._moved_on(config)
            self.inner = make(config)
        except BaseException:
            self.lock.release()
            raise

    def sweep(self, arguments: list[str]) -> Any:
        """See Hydra's Sweeper. Raises RunError where no trial was completed."""
        try:
            return self.inner.sweep(arguments)
        except ValueError as error:
            if "No trials are completed" not in str(error) and "Record does not exist" not in str(error):
                raise
            raise RunError("no trial of the search was completed") from error
        finally:
            self.lock.release()

    def _moved_on(self, config: DictConfig) -> DictConfig:
        study = self._study()
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state.name == "RUNNING":
                self._leave(study, trial)
        trials = study.get_trials(deepcopy=False)
        ended = sum(t.state.is_finished() and INTERRUPTED not in t.user_attrs for t in trials)
        moved = config.copy()
        with open_dict(moved):
            moved.hydra.sweeper.n_trials = max(0, int(self.sweeper.n_trials) - ended)
            sampler = moved.hydra.sweeper.sampler
            if "seed" in sampler:
                sampler.seed = int(sampler.seed or 0) + len(trials)
        return moved

    def _study(self) -> Any:
        import logging

        logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of its parts as it is imported
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)  # Hydra's sweeper says the same
        given: Any = OmegaConf.to_container(OmegaConf.create({"all": self.sweeper.direction}), enum_to_str=True)
        directions = given["all"]
        try:
            return optuna.create_study(
                study_name=self.sweeper.study_name,
                storage=self.sweeper.storage,
                directions=[directions] if isinstance(directions, str) else directions,
                load_if_exists=True,
            )
        except Exception as error:
            why = " ".join(str(error).split())
            raise InputError(f"the search's storage {self.sweeper.storage} cannot be used: {why}") from error

    @staticmethod
    def _leave(study: Any, trial: Any) -> None:
        import warnings

        import optuna

        warnings.filterwarnings(
            "ignore", category=optuna.exceptions.ExperimentalWarning
        )  # of enqueue_trial, since 2020
        optuna.trial.Trial(study, trial._trial_id).set_user_attr(INTERRUPTED, True)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)


def _hold(folder: Path) -> filelock.BaseFileLock:
    """The search of this folder. Raises InputError where it cannot be made, or another process has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".search.lock")
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise InputError(f"another search is working in {folder}: wait for it") from error
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error}") from error
    return lock
