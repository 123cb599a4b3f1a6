"""What stands between Hydra's sweeper and its launcher, whichever they are.

A sweeper (basic, Optuna) hands over jobs as lists of words. They are composed and checked all together, compared with
what is on the disk, and those that are left are run: on this machine by vaerun.sweep.local (Hydra's basic launcher runs
them in its own process, which a killed job takes along), else by the launcher that was chosen (Slurm, Ray), whose jobs
run vaerun.sweep.remote. What became of them is read from their result.json.
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
from vaerun.sweep.search import SWEEPER, Search
from vaerun.sweep.sweep import BASIC, BASIC_SWEEPER, Sweep


class Guarded:
    """A launcher to Hydra's sweepers."""

    def __init__(self, sweep: Sweep, inner: Any, config: DictConfig, context: HydraContext) -> None:
        self.sweep, self.inner, self.config, self.context = sweep, inner, config, context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """See Hydra's Launcher."""
        return self.sweep.launch(self.inner, self.config, self.context, job_overrides, initial_job_idx)


@contextmanager
def installed(command: list[str], check_only: bool = False) -> Iterator[Sweep]:
    """While active, Hydra's sweepers launch by way of a Sweep.

    Hydra takes launchers from the package hydra_plugins alone, one at a time; this one stands before any of them.
    """
    original, original_sweeper = Plugins.instantiate_launcher, Plugins.instantiate_sweeper
    with ShutdownSignal(outside=interrupt_on_signal("vaerun")) as stop:
        sweep = Sweep(command, check_only, stop)

        def instantiate(
            self: Plugins, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
        ) -> Any:
            basic = config.hydra.launcher is not None and config.hydra.launcher._target_ == BASIC
            sweep.look(config)
            # The inner launcher is set up before the patch is looked at again: it may pickle the plugins' registry.
            inner = None if basic or check_only else original(self, hydra_context, task_function, config)
            return Guarded(sweep, inner, config, hydra_context)

        def instantiate_sweeper(self: Plugins, *, config: DictConfig, **others: Any) -> Any:
            if config.hydra.sweeper._target_ != SWEEPER or check_only:
                sweeper: Any = original_sweeper(self, config=config, **others)
                if config.hydra.sweeper._target_ == BASIC_SWEEPER:
                    # All jobs are checked before the first starts, so they come as one batch; sweep.jobs is how many
                    # run at once. Hydra would compose each once more beforehand.
                    sweeper.max_batch_size = None
                    sweeper.validate_batch_is_legal = lambda batch: None
                return sweeper
            return Search(config, lambda moved: original_sweeper(self, config=moved, **others))

        Plugins.instantiate_launcher = instantiate  # type: ignore[method-assign]
        Plugins.instantiate_sweeper = instantiate_sweeper  # type: ignore[method-assign]
        try:
            yield sweep
        finally:
            sweep.clear()
            Plugins.instantiate_launcher = original  # type: ignore[method-assign]
            Plugins.instantiate_sweeper = original_sweeper  # type: ignore[method-assign]
