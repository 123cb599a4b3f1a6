"""Resuming a hyperparameter search, which Hydra's Optuna sweeper does not support.

The sweeper loads the study from its storage but then runs n_trials more trials; trials of a killed process stay RUNNING
forever; and a seeded sampler proposes the same values again. Here n_trials includes the trials of earlier invocations,
interrupted trials are repeated with the same values (so that their runs resume, or are skipped if finished), and the
seed is advanced.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
from omegaconf import DictConfig, OmegaConf, open_dict

from vaerun.errors import InputError, RunError

OPTUNA_SWEEPER = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
INTERRUPTED = "interrupted"  # attribute of an interrupted trial, which is repeated as another trial


class ResumableSearch:
    """The Optuna sweeper, resumed from the storage of its study.

    Arguments:
        config: the configuration, including the `hydra` group.
        make: builds the plugin's sweeper from a configuration.

    Raises InputError if another search is using the folder or the storage cannot be read.
    """

    def __init__(self, config: DictConfig, make: Callable[[DictConfig], Any]) -> None:
        self.lock = _lock_search(Path(str(config.hydra.sweep.dir)))
        self.sweeper = config.hydra.sweeper
        try:
            if self.sweeper.storage is not None:
                config = self._resumed(config)
            self.inner = make(config)
        except BaseException:
            self.lock.release()
            raise

    def sweep(self, arguments: list[str]) -> Any:
        """See Hydra's Sweeper. Raises RunError if no trial was completed."""
        try:
            return self.inner.sweep(arguments)
        except ValueError as error:
            if "No trials are completed" not in str(error) and "Record does not exist" not in str(error):
                raise
            raise RunError("no trial of the search was completed") from error
        finally:
            self.lock.release()

    def _resumed(self, config: DictConfig) -> DictConfig:
        """The configuration with the remaining number of trials as n_trials, and the sampler's seed advanced."""
        study = self._study()
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state.name == "RUNNING":
                self._repeat(study, trial)
        trials = study.get_trials(deepcopy=False)
        ended = sum(t.state.is_finished() and INTERRUPTED not in t.user_attrs for t in trials)
        resumed = config.copy()
        with open_dict(resumed):
            resumed.hydra.sweeper.n_trials = max(0, int(self.sweeper.n_trials) - ended)
            sampler = resumed.hydra.sweeper.sampler
            if "seed" in sampler:
                sampler.seed = int(sampler.seed or 0) + len(trials)
        return resumed

    def _study(self) -> Any:
        import logging

        logging.getLogger("alembic").setLevel(logging.WARNING)  # it logs its plugins on import
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)  # Hydra's sweeper prints the same messages
        container: Any = OmegaConf.to_container(OmegaConf.create({"all": self.sweeper.direction}), enum_to_str=True)
        directions = container["all"]
        try:
            return optuna.create_study(
                study_name=self.sweeper.study_name,
                storage=self.sweeper.storage,
                directions=[directions] if isinstance(directions, str) else directions,
                load_if_exists=True,
            )
        except Exception as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"the search's storage {self.sweeper.storage} cannot be used: {reason}; check hydra.sweeper.storage"
            ) from error

    @staticmethod
    def _repeat(study: Any, trial: Any) -> None:
        """End an interrupted trial and queue another one with the same values."""
        import warnings

        import optuna

        # enqueue_trial warns that it is experimental, as it has since 2020.
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        optuna.trial.Trial(study, trial._trial_id).set_user_attr(INTERRUPTED, True)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)


def _lock_search(folder: Path) -> filelock.BaseFileLock:
    """Lock the search of this folder. Raises InputError if that fails or another process holds the lock."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".search.lock")
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise InputError(f"another search is using {folder}: wait for it") from error
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error}; choose another output_dir") from error
    return lock
