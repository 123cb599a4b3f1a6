"""The training loop, shared by all model families: steps, validations, checkpoints and signals.

All randomness is a function of position: the permutation depends on (seed, epoch), the noise on (seed, step). A
checkpoint therefore needs no generator state, and a resumed run is bitwise identical to an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.distributed.collectives import Ranks
from vaerun.errors import Interrupted, RunError
from vaerun.objectives import Objective
from vaerun.randomness import permutation
from vaerun.signals import ShutdownSignal
from vaerun.storage.checkpoint import CheckpointManager, NullCheckpointManager
from vaerun.tracking.logger import NullLogger, RunLogger
from vaerun.training.cuda_graph import GraphedStep, capture_step
from vaerun.training.finite_guard import FiniteGuard
from vaerun.training.settings import TrainPlan, TrainSettings, lr_multiplier
from vaerun.training.step import Step, make_optimisers
from vaerun.training.train_state import Clock, TrainState, restore

MIN_CAPTURED_STEPS = 20  # for fewer steps a capture does not pay off


def _ignore(*arguments: Any) -> None:
    pass


@dataclass(frozen=True)
class Hooks:
    """Callbacks of a training run.

    Attributes:
        validate: returns validation metrics; None: there is no validation split.
        selection: metric that selects the best parameters, to be maximised, or minimised if its name ends in
            "_distance". None, or without `validate`: the last parameters are selected.
        warn: called with one line per warning.
        on_validation_end: called after each validation, with the step.
        on_ready: called once, before the first step.
        on_precision_compared: if settings.precision is lower than float32, called with the relative differences from
            float32 on the first batch, by phase.
    """

    validate: Callable[[], dict[str, float]] | None = None
    selection: str | None = "val/elbo"
    warn: Callable[[str], None] = _ignore
    on_validation_end: Callable[[int], None] = _ignore
    on_ready: Callable[[], None] = _ignore
    on_precision_compared: Callable[[dict[str, dict[str, float]]], None] = _ignore


class Trainer:
    """Trains an objective until the last step, early stopping, a signal or a non-finite loss.

    Arguments:
        objective: objective to optimise.
        split: the training split.
        settings, plan: see TrainSettings and TrainPlan.
        hooks: see Hooks; used on rank 0 only.
        logger, checkpoints: destinations of metrics and checkpoints; used on rank 0 only.
        stop: shutdown signals.
        ranks: the processes of this run, each with its own trainer; None: a single process.
        generator: generator of batch noise; None: torch's global generator, which no other run may use concurrently.
        checkpoint: checkpoint to resume from; None: start at step 0.

    Raises InputError if the checkpoint does not fit the model.
    """

    def __init__(
        self,
        objective: Objective,
        split: Split,
        settings: TrainSettings,
        plan: TrainPlan,
        *,
        hooks: Hooks | None = None,
        logger: RunLogger | NullLogger | None = None,
        checkpoints: CheckpointManager | NullCheckpointManager | None = None,
        stop: ShutdownSignal | None = None,
        ranks: Ranks | None = None,
        generator: torch.Generator | None = None,
        checkpoint: dict[str, Any] | None = None,
    ) -> None:
        self.objective, self.split, self.settings, self.plan = objective, split, settings, plan
        self.hooks, self.ranks, self.stop = hooks or Hooks(), ranks or Ranks(), stop or ShutdownSignal()
        first = self.ranks.rank == 0
        self.logger = logger if logger is not None and first else NullLogger()
        self.checkpoints = checkpoints if checkpoints is not None and first else NullCheckpointManager()
        self.device = split.images.device
        self.optimisers = make_optimisers(objective.phases, settings)
        self.guard = FiniteGuard(self.device, self.ranks)
        self.eager_step = Step(objective, split, settings, self.optimisers, self.guard, self.ranks, generator)
        self.step: Step | GraphedStep = self.eager_step
        self.state, self.summed_images = TrainState(), 0
        if checkpoint is not None:
            self.state, sums, self.summed_images = restore(objective, self.optimisers, checkpoint, self.device)
            # The saved sums are over all ranks, so only rank 0 restores them.
            self.eager_step.sums |= sums if first else {k: torch.zeros_like(v) for k, v in sums.items()}
        self.state.finished |= self.state.step >= self.plan.total_steps and not self.state.validation_due
        self.repeats = max(phase.repeats for phase in objective.phases.values())
        self.clock = Clock(self.device, self.state.step)
        self._cached_permutations: tuple[int, list[Tensor]] = (-1, [])  # (epoch, permutations)
        self._saved_at = time.monotonic()
        self._best: dict[str, Any] | None = None  # best parameters, not yet written to best.pt
        self._warnings: set[str] = set()  # warnings of the previous `_log_metrics`, not repeated

    def train(self) -> TrainState:
        """Train to the end and return the final state.

        Raises:
            Interrupted: a signal was received; the state has been saved.
            RunError: a loss or gradient was not finite (the update was skipped, and last.pt is from before), or the
                objective cannot be trained with settings.precision or settings.compile.
            PeerLost: another process of the run has exited.
        """
        self._start()
        while not self.state.finished:
            if not self.state.validation_due:
                self.train_step()
            if self.state.validation_due:
                self.validate()
            self._save_or_stop()
        self.logger.end_progress()
        return self.state

    def _start(self) -> None:
        hooks, ranks, state = self.hooks, self.ranks, self.state
        self.validates, self.selection = ranks.on_rank_zero(
            lambda: (hooks.validate is not None, None if hooks.validate is None else hooks.selection)
        )
        ranks.exchange_requests(self.stop, lambda: time.monotonic() - self._saved_at > self.settings.checkpoint_seconds)
        ranks.assert_ranks_equal(
            lambda: {
                "parameters": self.objective.state_dict(),
                "the optimiser's moments": [optimiser.state_dict() for optimiser in self.optimisers.values()],
                "step, settings and number of images": [state.step, self.settings, len(self.split)],
            }
        )
        if self.settings.precision != "float32":
            hooks.on_precision_compared(self.eager_step.compare_precision())
        self.objective.train()
        if not state.finished and self.plan.total_steps - state.step >= MIN_CAPTURED_STEPS:
            self.step = capture_step(self.eager_step, self.plan, self.repeats, state.step, self._warn)
        hooks.on_ready()

    def train_step(self) -> None:
        """Take the next step, and log training metrics if they are due."""
        state, plan = self.state, self.plan
        epoch, batch = divmod(state.step, plan.steps_per_epoch)
        multiplier = lr_multiplier(self.settings.schedule, epoch, state.step / plan.total_steps)
        orders = self._permutations(epoch)
        self.clock.begin(state)
        rows = [order[batch * plan.batch_size : (batch + 1) * plan.batch_size] for order in orders]
        self.eager_step.begin(state.step, multiplier)
        self.step.run(state.step, rows)

        state.step += 1
        self.summed_images += len(rows[0])
        last = state.step >= plan.total_steps
        epoch_ends = state.step % plan.steps_per_epoch == 0
        state.validation_due = last or (epoch_ends and (epoch + 1) % self.settings.validate_every == 0)
        if state.step % self.settings.log_every == 0 or last:
            self._log_metrics(multiplier)
            self.logger.progress(state.step, epoch + 1, self.settings.epochs)

    def _permutations(self, epoch: int) -> list[Tensor]:
        """Permutations [N] of the images in this epoch, one per repeat of a phase: each repeat sees every image."""
        if self._cached_permutations[0] != epoch:
            positions: list[tuple[str | int, ...]] = [("epoch", epoch)]
            positions += [("epoch", epoch, "repeat", r) for r in range(1, self.repeats)]
            orders = [permutation(len(self.split), self.settings.seed, *p).to(self.device) for p in positions]
            self._cached_permutations = epoch, orders
        return self._cached_permutations[1]

    def _log_metrics(self, multiplier: float) -> None:
        """Log means since the last call; the only place in the loop where the host waits for the device."""
        values = {f"train/{k}": v / self.summed_images for k, v in self.eager_step.reduce_metrics().items()}
        values["train/learning_rate"] = self.settings.learning_rate * multiplier
        diagnostics = self.objective.diagnostics()
        values |= {f"train/{k}": v for k, v in diagnostics.values.items()}
        for line in sorted(set(diagnostics.warnings) - self._warnings):
            self._warn(f"step {self.state.step}: {line}")
        self._warnings = set(diagnostics.warnings)
        self.logger.log_scalars(self.state.step, self.epochs_done, values)
        self.eager_step.clear()
        self.summed_images = 0

    def _warn(self, line: str) -> None:
        if self.ranks.rank == 0:
            self.hooks.warn(line)

    @property
    def epochs_done(self) -> float:
        """Number of epochs done, a fraction within an epoch."""
        return self.state.step / self.plan.steps_per_epoch

    def validate(self) -> None:
        """Compute validation metrics, and keep a copy of the best parameters so far."""
        state = self.state
        self.guard.check()
        self.clock.pause(state)
        self.ranks.assert_ranks_equal(lambda: {"parameters": self.objective.state_dict()})
        if self.validates:
            try:
                self.objective.train(False)
                metrics = self.ranks.on_rank_zero(self.hooks.validate)
            except Interrupted:
                self.save()  # validation_due is still set, so a resumed run validates first
                raise
            finally:
                self.objective.train()
            self.logger.log_scalars(state.step, self.epochs_done, metrics)
            if self.selection is not None and not math.isfinite(metrics[self.selection]):
                problem = f"{self.selection} is not finite after step {state.step}"
                remedy = "lower trainer.learning_rate or set trainer.clip_norm=100"
                raise self.ranks.mark_collective(RunError(f"{problem}: {remedy}"))
            self.logger.progress(state.step, math.ceil(self.epochs_done), self.settings.epochs, validated=True)
            if self.selection is not None:
                self._update_best(metrics[self.selection], lower_is_better=self.selection.endswith("_distance"))
        self.ranks.on_rank_zero(lambda: self.hooks.on_validation_end(state.step))
        state.validation_due = False
        patience = self.settings.early_stopping
        state.finished = state.step >= self.plan.total_steps or (patience is not None and state.stale >= patience)

    def _update_best(self, value: float, lower_is_better: bool) -> None:
        best = self.state.best
        if best is None or (value < best if lower_is_better else value > best):
            self.state.best, self.state.best_epoch, self.state.stale = value, self.epochs_done, 0
            self._best = {k: v.detach().clone() for k, v in self.objective.state_dict().items()}
        else:
            self.state.stale += 1

    def save(self) -> None:
        """Write last.pt, and best.pt if there are new best parameters."""
        sums = self.ranks.sum(self.eager_step.sums)
        self.ranks.on_rank_zero(lambda: self._write(sums))
        self._saved_at = time.monotonic()

    def _write(self, sums: dict[str, Tensor]) -> None:
        if self._best is not None:
            best = {"objective": self._best, "epoch": self.state.best_epoch, "selection": self.selection}
            self.checkpoints.save_best(best)
            self._best = None
        self.checkpoints.save_last(
            {
                "objective": self.objective.state_dict(),
                "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
                "progress": asdict(self.state),
                "metrics": {"sums": {k: v.cpu() for k, v in sums.items()}, "count": self.summed_images},
                "log": self.logger.position(),
            }
        )

    def _save_or_stop(self) -> None:
        """Save if a checkpoint is due or training ends. Raises Interrupted if a signal was received."""
        signum, due = self.ranks.pending_requests()
        if signum is None and not self.state.finished and not due:
            return
        self.guard.check()
        self.clock.pause(self.state)
        if self.state.finished and self.selection is None:
            self.state.best_epoch, self._best = self.epochs_done, self.objective.state_dict()
        self.save()
        if not self.state.finished:
            self.ranks.check_signal(self.stop, signum)
