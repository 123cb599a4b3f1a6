"""One linear training loop for every family of models.

Everything random is a function of position: the permutation of (seed, epoch), the noise of (seed, step). Together with
the states of objective and optimisers a checkpoint is therefore complete, and 10 + 10 steps give the bits of 20.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.distributed.collectives import Ranks, Silent
from vaerun.errors import InputError, Interrupted, RunError
from vaerun.objectives import Objective
from vaerun.randomness import permutation
from vaerun.signals import ShutdownSignal
from vaerun.storage.checkpoint import CheckpointManager
from vaerun.storage.safe_pickle import number_type
from vaerun.tracking.logger import RunLogger
from vaerun.training.cuda_graph import GraphedStep, capture_step
from vaerun.training.finite_guard import FiniteGuard
from vaerun.training.optimisers import make_optimisers
from vaerun.training.schedule import lr_multiplier
from vaerun.training.settings import TrainSettings
from vaerun.training.step import Step
from vaerun.training.train_state import Clock, TrainState, counted

FEW = 20  # steps that are not worth a recording


def train(
    objective: Objective,
    split: Split,
    settings: TrainSettings,
    *,
    validate: Callable[[], dict[str, float]] | None,
    selection: str | None = "val/elbo",
    warn: Callable[[str], None] | None = None,
    after_validation: Callable[[int], None] | None = None,
    log: RunLogger | Silent,
    store: CheckpointManager | Silent,
    stop: ShutdownSignal,
    resume: dict[str, Any] | None = None,
    ranks: Ranks | None = None,
    source: torch.Generator | None = None,
    ready: Callable[[], None] | None = None,
    compared: Callable[[dict[str, dict[str, float]]], None] | None = None,
) -> TrainState:
    """Train until the last step, early stopping, a signal or a loss that is not finite.

    Arguments:
        objective: what to optimise.
        split: the training split.
        settings: see TrainSettings.
        validate: gives metrics of the validation split; None: there is no such split.
        selection: the one of them that the best parameters are chosen by (higher is better; a name that ends in
            "_distance": lower is); None, or without `validate`: the last parameters are the best.
        warn: called with one line when the objective has something to warn of, once for as long as it stays true.
        after_validation: called with the step after each validation (pictures).
        log, store, stop: records, checkpoints, signals.
        resume: a checkpoint to go on from.
        ranks: the processes of this run, each of which calls this; None: there is one. Only the first one's validate,
            selection, warn, after_validation, log and store are used: the others may give None.
        source: where batch noise comes from; None: torch's global generator, which is then this run's alone.
        ready: called once, when the step can be made and none has been.
        compared: called with how a lower settings.precision differs from float32 on the first batch, by phase.

    Raises:
        Interrupted: a signal came; the state is saved.
        RunError: a loss or gradient was not finite; its update was not made, and last.pt is from before it. Or
            settings.precision or settings.compile cannot be had for this objective.
        InputError: the checkpoint does not fit this run's model.
        Lost: another process of the run has ended.
    """
    ranks = ranks or Ranks()
    optimisers = make_optimisers(objective.phases, settings)
    progress, sums, count = TrainState(), dict[str, Tensor](), 0
    device = split.images.device
    if resume is not None:
        progress, sums, count = restore(objective, optimisers, resume, device)
    if ranks.rank:  # what is measured is counted once, and the first process writes it
        sums, log, store, warn = {k: torch.zeros_like(v) for k, v in sums.items()}, Silent(), Silent(), None
    total = settings.total_steps(len(split))
    per_epoch = -(-len(split) // settings.batch_size)
    guard = FiniteGuard(device, ranks)
    step = Step(objective, split, settings, optimisers, guard, ranks, source)
    step.sums |= sums
    saved_at = time.monotonic()
    best_waiting: dict[str, Any] | None = None
    validates, selection = ranks.on_rank_zero(lambda: (validate is not None, None if validate is None else selection))
    afterwards = after_validation or (lambda step: None)
    repeats = max(phase.repeats for phase in objective.phases.values())
    orders, order_epoch = [torch.empty(0, dtype=torch.int64)], -1
    told: set[str] = set()
    clock = Clock(device, progress.step)
    progress.finished |= progress.step >= total and not progress.validation_due

    def write(sums: dict[str, Tensor]) -> None:
        nonlocal best_waiting
        if best_waiting is not None:
            store.save_best({"objective": best_waiting, "epoch": progress.best_epoch, "selection": selection})
            best_waiting = None
        state = {name: optimiser.state_dict() for name, optimiser in optimisers.items()}
        kept = {"sums": {k: v.cpu() for k, v in sums.items()}, "count": count}
        store.save_last(
            {
                "objective": objective.state_dict(),
                "optimisers": state,
                "progress": asdict(progress),
                "metrics": kept,
                "log": log.position(),
            }
        )

    def save() -> None:
        nonlocal saved_at
        totals = ranks.sum(step.sums)
        ranks.on_rank_zero(lambda: write(totals))
        saved_at = time.monotonic()

    ranks.listen(stop, lambda: time.monotonic() - saved_at > settings.checkpoint_seconds)
    ranks.assert_ranks_equal(
        lambda: {
            "parameters": objective.state_dict(),
            "the optimiser's moments": [optimiser.state_dict() for optimiser in optimisers.values()],
            "step, settings and number of images": [progress.step, settings, len(split)],
        }
    )
    if settings.precision != "float32":
        found = step.compare_precision()
        if compared is not None:
            compared(found)
    objective.train()
    make: Step | GraphedStep = step
    if not progress.finished and total - progress.step >= FEW:
        sizes = {min(settings.batch_size, len(split)), len(split) % settings.batch_size or settings.batch_size}
        make = capture_step(step, sorted(sizes), repeats, progress.step, warn)
    if ready is not None:
        ready()
    while not progress.finished:
        if not progress.validation_due:
            # Place in the run: batch i of an epoch.
            epoch, i = divmod(progress.step, per_epoch)
            if epoch != order_epoch:
                # Where a phase repeats, each of its updates goes through the images in an order of its own.
                positions: list[tuple[str | int, ...]] = [("epoch", epoch)]
                positions += [("epoch", epoch, "repeat", r) for r in range(1, repeats)]
                orders = [permutation(len(split), settings.seed, *place).to(device) for place in positions]
                order_epoch = epoch
            part = slice(i * settings.batch_size, (i + 1) * settings.batch_size)
            scale = lr_multiplier(settings.schedule, epoch, progress.step / total)

            clock.begin(progress)
            rows = [order[part] for order in orders]
            make(progress.step, scale, rows)
            progress.step += 1
            count += len(rows[0])
            last = progress.step >= total
            progress.validation_due = last or (
                progress.step % per_epoch == 0 and (epoch + 1) % settings.validate_every == 0
            )

            # Records of the training loss; the only place where the host waits for the device.
            if progress.step % settings.log_every == 0 or last:
                values = {f"train/{k}": v / count for k, v in step.reduce_metrics().items()}
                values["train/learning_rate"] = settings.learning_rate * scale
                look = objective.diagnostics()
                values |= {f"train/{k}": v for k, v in look.values.items()}
                if warn is not None:
                    for line in sorted(set(look.warnings) - told):
                        warn(f"step {progress.step}: {line}")
                told = set(look.warnings)
                log.record(progress.step, progress.step / per_epoch, values)
                step.clear()
                count = 0
                log.progress(progress.step, epoch + 1, settings.epochs)

        # Validation: selects the parameters that will be evaluated.
        if progress.validation_due:
            guard.check()
            clock.pause(progress)
            ranks.assert_ranks_equal(lambda: {"parameters": objective.state_dict()})
            if validates:
                try:
                    objective.train(False)
                    measured = ranks.on_rank_zero(validate)
                except Interrupted:
                    save()  # with the validation still due: a resumed run makes it first
                    raise
                finally:
                    objective.train()
                log.record(progress.step, progress.step / per_epoch, measured)
                if selection is not None and not math.isfinite(measured[selection]):
                    words = f"{selection} is not finite after step {progress.step}: lower trainer.learning_rate"
                    raise ranks.agreed(RunError(f"{words} or set trainer.clip_norm=100"))
                log.progress(progress.step, math.ceil(progress.step / per_epoch), settings.epochs, validated=True)
                if selection is not None:
                    now, best = measured[selection], progress.best
                    lower = selection.endswith("_distance")
                    if best is None or (now < best if lower else now > best):
                        progress.best, progress.stale = now, 0
                        progress.best_epoch = progress.step / per_epoch
                        best_waiting = {k: v.detach().clone() for k, v in objective.state_dict().items()}
                    else:
                        progress.stale += 1
            ranks.on_rank_zero(lambda: afterwards(progress.step))
            progress.validation_due = False
            patience = settings.early_stopping
            progress.finished = progress.step >= total or (patience is not None and progress.stale >= patience)

        # Checkpoints and signals.
        signum, due = ranks.pending_requests()
        if signum is not None or progress.finished or due:
            guard.check()
            clock.pause(progress)
            if progress.finished and selection is None:
                progress.best_epoch, best_waiting = progress.step / per_epoch, objective.state_dict()
            save()
            if not progress.finished:
                ranks.check(stop, signum)
    log.end_progress()
    return progress


MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of Adam


def restore(
    objective: Objective, optimisers: dict[str, torch.optim.Optimizer], state: dict[str, Any], device: torch.device
) -> tuple[TrainState, dict[str, Tensor], int]:
    """Put a checkpoint's state into objective and optimisers; returns progress, sums of metrics and their count.

    Raises InputError when it does not fit.
    """
    try:
        for name, value in objective.state_dict().items():
            if name in state["objective"] and number_type(state["objective"][name]) != number_type(value):
                raise ValueError(f"{name} holds numbers of another kind")
        objective.load_state_dict(state["objective"])
        for name, optimiser in optimisers.items():
            kept = [moments.get(key) for moments in state["optimisers"][name]["state"].values() for key in MOMENTS]
            if not all(isinstance(value, Tensor) for value in kept):
                raise ValueError(f"{name}: an optimiser's moments are not whole")
            if not all(value.is_floating_point() for value in kept):
                raise ValueError(f"{name}: an optimiser's moments hold numbers of another kind")
            own = [{k: group[k] for k in ("lr", "base_lr", "betas", "capturable")} for group in optimiser.param_groups]
            optimiser.load_state_dict(state["optimisers"][name])
            for group, options in zip(optimiser.param_groups, own, strict=True):
                group |= options  # the settings' own: a run that starts from another's checkpoint may differ
            for parameter, moments in optimiser.state.items():
                if any(v.dim() and v.shape != parameter.shape for v in moments.values() if isinstance(v, Tensor)):
                    raise ValueError(f"{name}: an optimiser's moments have other sizes than the parameters")
        sums = {k: v.to(device) for k, v in state["metrics"]["sums"].items()}
        return TrainState.of(state["progress"]), sums, counted("count", state["metrics"]["count"])
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the checkpoint does not fit this run's model: {reason}") from error
