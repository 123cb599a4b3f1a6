"""One linear training loop for every family of models.

Everything random is a function of position: the permutation of (seed, epoch), the noise of (seed, step). Together with
the states of objective and optimisers a checkpoint is therefore complete, and 10 + 10 steps give the bits of 20.
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
from vaerun.errors import InputError, Interrupted, RunError
from vaerun.objectives import Objective, Phase
from vaerun.randomness import mix, permutation
from vaerun.training.checkpoint import Store
from vaerun.training.guard import FiniteGuard
from vaerun.training.log import Log
from vaerun.training.progress import Clock, Progress
from vaerun.training.schedule import factor
from vaerun.training.signals import Stop


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        seed: of permutations and noise.
        epochs: passes through the training split.
        max_steps: stop after so many steps if that is sooner; None: no such limit.
        batch_size: images per step; the last batch of an epoch may be smaller.
        learning_rate: Adam's, for the networks.
        variance_learning_rate: Adam's, for log s2; None: the same.
        schedule: see training/schedule.py.
        clip_norm: largest norm of a phase's whole gradient; None: no clipping.
        early_stopping: validations without improvement after which training ends; None: never.
        log_every: steps between records of training metrics.
        validate_every: epochs between validations.
        checkpoint_seconds: least time between checkpoints.
    """

    seed: int
    epochs: int
    batch_size: int
    learning_rate: float
    max_steps: int | None = None
    variance_learning_rate: float | None = None
    schedule: str = "constant"
    clip_norm: float | None = None
    early_stopping: int | None = None
    log_every: int = 50
    validate_every: int = 1
    checkpoint_seconds: float = 60.0

    def total_steps(self, images: int) -> int:
        """Steps of the whole run on so many training images. Raises InputError for a batch larger than the data."""
        if self.batch_size > images:
            raise InputError(
                f"trainer.batch_size={self.batch_size} is larger than the training split ({images} images): "
                f"set it to at most {images}"
            )
        steps = self.epochs * -(-images // self.batch_size)
        return steps if self.max_steps is None else min(steps, self.max_steps)


def make_optimisers(phases: dict[str, Phase], settings: TrainSettings) -> dict[str, torch.optim.Optimizer]:
    """One Adam per phase; each group remembers its base rate."""
    rates = {"network": settings.learning_rate}
    rates["variance"] = (
        settings.learning_rate if settings.variance_learning_rate is None else settings.variance_learning_rate
    )
    return {
        name: torch.optim.Adam(
            [{"params": p, "lr": rates[g], "base_lr": rates[g]} for g, p in phase.groups.items() if p], fused=True
        )
        for name, phase in phases.items()
    }


def train(
    objective: Objective,
    split: Split,
    settings: TrainSettings,
    *,
    validate: Callable[[], dict[str, float]] | None,
    selection: str = "val/elbo",
    after_validation: Callable[[int], None] | None = None,
    log: Log,
    store: Store,
    stop: Stop,
    resume: dict[str, Any] | None = None,
) -> Progress:
    """Train until the last step, early stopping, a signal or a loss that is not finite.

    Arguments:
        objective: what to optimise.
        split: the training split.
        settings: see TrainSettings.
        validate: gives metrics of the validation split; None: there is no such split, and the last parameters are the
            best.
        selection: the one of them that the best parameters are chosen by (higher is better).
        after_validation: called with the step after each validation (pictures).
        log, store, stop: records, checkpoints, signals.
        resume: a checkpoint to go on from.

    Raises:
        Interrupted: a signal came; the state is saved.
        RunError: a loss or gradient was not finite; its update was not made, and last.pt is from before it.
        InputError: the checkpoint does not fit this run's model.
    """
    optimisers = make_optimisers(objective.phases, settings)
    progress, sums, count = Progress(), dict[str, Tensor](), 0
    device = split.images.device
    if resume is not None:
        progress, sums, count = restore(objective, optimisers, resume, device)
    total = settings.total_steps(len(split))
    per_epoch = -(-len(split) // settings.batch_size)
    guard = FiniteGuard(device)
    saved_at = time.monotonic()
    best_waiting: dict[str, Any] | None = None
    order, order_epoch = torch.empty(0, dtype=torch.int64), -1
    clock = Clock(device, progress.step)
    progress.finished |= progress.step >= total and not progress.validation_due

    def save() -> None:
        nonlocal saved_at, best_waiting
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
        saved_at = time.monotonic()

    objective.train()
    while not progress.finished:
        if not progress.validation_due:
            # Place in the run: batch i of an epoch.
            epoch, i = divmod(progress.step, per_epoch)
            if epoch != order_epoch:
                order, order_epoch = permutation(len(split), settings.seed, "epoch", epoch).to(device), epoch
            rows = order[i * settings.batch_size : (i + 1) * settings.batch_size]
            scale = factor(settings.schedule, epoch, progress.step / total)

            # One step: each phase in turn, its loss averaged over the batch here and nowhere else.
            clock.begin(progress)
            torch.manual_seed(mix(settings.seed, "step", progress.step))
            batch = split.training_batch(rows)
            for name, phase in objective.phases.items():
                for _ in range(phase.repeats):
                    loss, metrics = objective.loss(name, progress.step, batch)
                    _update(optimisers[name], loss.mean(), metrics, scale, settings.clip_norm, guard, progress.step)
                for key, value in metrics.items():
                    sums[key] = sums[key] + value.sum() if key in sums else value.sum()
            objective.after_step(progress.step)
            progress.step += 1
            count += len(rows)
            last = progress.step >= total
            progress.validation_due = last or (
                progress.step % per_epoch == 0 and (epoch + 1) % settings.validate_every == 0
            )

            # Records of the training loss; the only place where the host waits for the device.
            if progress.step % settings.log_every == 0 or last:
                guard.check()
                values = {f"train/{k}": float(v) / count for k, v in sums.items()}
                values["train/learning_rate"] = settings.learning_rate * scale
                log.record(progress.step, progress.step / per_epoch, values)
                sums, count = {}, 0
                log.progress(progress.step, epoch + 1, settings.epochs)

        # Validation: selects the parameters that will be evaluated.
        if progress.validation_due:
            guard.check()
            clock.pause(progress)
            if validate is not None:
                try:
                    objective.train(False)
                    found = validate()
                except Interrupted:
                    save()  # with the validation still due: a resumed run makes it first
                    raise
                finally:
                    objective.train()
                log.record(progress.step, progress.step / per_epoch, found)
                if not math.isfinite(found[selection]):
                    raise RunError(
                        f"{selection} is not finite after step {progress.step}: lower trainer.learning_rate or "
                        "set trainer.clip_norm=100"
                    )
                log.progress(progress.step, math.ceil(progress.step / per_epoch), settings.epochs, validated=True)
                if progress.best is None or found[selection] > progress.best:
                    progress.best, progress.stale = found[selection], 0
                    progress.best_epoch = progress.step / per_epoch
                    best_waiting = {k: v.detach().clone() for k, v in objective.state_dict().items()}
                else:
                    progress.stale += 1
            if after_validation is not None:
                after_validation(progress.step)
            progress.validation_due = False
            patience = settings.early_stopping
            progress.finished = progress.step >= total or (patience is not None and progress.stale >= patience)

        # Checkpoints and signals.
        due = time.monotonic() - saved_at > settings.checkpoint_seconds
        if stop.signum is not None or progress.finished or due:
            guard.check()
            clock.pause(progress)
            if progress.finished and validate is None:
                progress.best_epoch, best_waiting = progress.step / per_epoch, objective.state_dict()
            save()
            if not progress.finished:
                stop.check()
    log.end_progress()
    return progress


def _update(
    optimiser: torch.optim.Optimizer,
    loss: Tensor,
    metrics: dict[str, Tensor],
    scale: float,
    clip_norm: float | None,
    guard: FiniteGuard,
    step: int,
) -> None:
    """One optimiser step, unless loss or gradient is not finite."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * scale
    bad = ~(torch.isfinite(loss.detach()) & torch.isfinite(norm))
    guard.see(bad, step, metrics, norm)
    if guard.on_device:
        # The fused kernel leaves parameters and moments alone where this is 1: no transfer to the host is needed.
        optimiser.grad_scale, optimiser.found_inf = None, bad.float()  # type: ignore[attr-defined]
    optimiser.step()


def restore(
    objective: Objective, optimisers: dict[str, torch.optim.Optimizer], state: dict[str, Any], device: torch.device
) -> tuple[Progress, dict[str, Tensor], int]:
    """Put a checkpoint's state into objective and optimisers; returns progress, sums of metrics and their count.

    Raises InputError when it does not fit.
    """
    try:
        objective.load_state_dict(state["objective"])
        for name, optimiser in optimisers.items():
            rates = [group["base_lr"] for group in optimiser.param_groups]
            optimiser.load_state_dict(state["optimisers"][name])
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["base_lr"] = rate  # the settings' own: a run that starts from another's checkpoint may differ
        sums = {k: v.to(device) for k, v in state["metrics"]["sums"].items()}
        return Progress(**state["progress"]), sums, int(state["metrics"]["count"])
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the checkpoint does not fit this run's model: {reason}") from error
