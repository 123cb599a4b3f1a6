"""A layer between any Hydra sweeper and launcher.

A sweeper (basic, Optuna) submits jobs as lists of overrides. They are composed and checked together and compared with
their run directories. The unfinished ones are launched: on this machine by vaerun.sweep.local (Hydra's basic launcher
runs jobs in its own process and dies with a killed job), otherwise by the chosen launcher (Slurm, Ray), whose jobs call
vaerun.sweep.remote. Outcomes are read from result.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from vaerun.signals import ShutdownSignal, interrupt_on_signal
from vaerun.sweep.composition import collecting_missing_keys
from vaerun.sweep.search import OPTUNA_SWEEPER, ResumableSearch
from vaerun.sweep.sweep import BASIC_LAUNCHER, BASIC_SWEEPER, Sweep


class InterceptedLauncher:
    """Stands in for Hydra's launcher and passes the sweeper's jobs to a Sweep."""

    def __init__(self, sweep: Sweep, inner: Any, config: DictConfig, context: HydraContext) -> None:
        self.sweep, self.inner, self.config, self.context = sweep, inner, config, context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """See Hydra's Launcher."""
        try:
            return self.sweep.launch(self.inner, self.config, self.context, job_overrides, initial_job_idx)
        except Exception as error:
            self.sweep.failure = error
            raise


@contextmanager
def patched_launcher(command: list[str], check_only: bool = False) -> Iterator[Sweep]:
    """While active, Hydra's sweepers launch their jobs through a Sweep.

    Hydra only accepts launchers from the package hydra_plugins, one at a time, so this one wraps the chosen launcher.
    """
    original, original_sweeper = Plugins.instantiate_launcher, Plugins.instantiate_sweeper
    with ShutdownSignal(on_immediate=interrupt_on_signal("vaerun")) as stop:
        sweep = Sweep(command, check_only, stop)

        def instantiate(
            self: Plugins, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
        ) -> Any:
            is_basic = config.hydra.launcher is not None and config.hydra.launcher._target_ == BASIC_LAUNCHER
            sweep.inspect(config)
            # Set up the inner launcher now, before it launches: it may pickle the plugin registry.
            inner = None if is_basic or check_only else original(self, hydra_context, task_function, config)
            return InterceptedLauncher(sweep, inner, config, hydra_context)

        def instantiate_sweeper(self: Plugins, *, config: DictConfig, **options: Any) -> Any:
            if config.hydra.sweeper._target_ != OPTUNA_SWEEPER or check_only:
                sweeper: Any = original_sweeper(self, config=config, **options)
                if config.hydra.sweeper._target_ == BASIC_SWEEPER:
                    # Take all jobs as one batch, to check them before the first one starts; sweep.jobs limits how many
                    # run at once. Skip Hydra's validation, which would compose every job once more.
                    sweeper.max_batch_size = None
                    sweeper.validate_batch_is_legal = lambda batch: None
                return sweeper
            return ResumableSearch(config, lambda resumed: original_sweeper(self, config=resumed, **options))

        Plugins.instantiate_launcher = instantiate  # type: ignore[method-assign]
        Plugins.instantiate_sweeper = instantiate_sweeper  # type: ignore[method-assign]
        try:
            with collecting_missing_keys(is_sweep=lambda: sweep.folder is None):  # `inspect` precedes all jobs
                yield sweep
        finally:
            sweep.clean_up()
            Plugins.instantiate_launcher = original  # type: ignore[method-assign]
            Plugins.instantiate_sweeper = original_sweeper  # type: ignore[method-assign]
