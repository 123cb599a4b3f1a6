"""Captured and eager steps, for the CPU (tape.py) and for a GPU."""

from __future__ import annotations

from typing import Any

import torch
from support.runs.processes import Case, split_of
from torch import Tensor

from vaerun.distributed.collectives import Ranks
from vaerun.randomness import permutation
from vaerun.training import TrainSettings, make_optimisers
from vaerun.training.cuda_graph import CudaGraph, GraphedStep
from vaerun.training.finite_guard import FiniteGuard
from vaerun.training.settings import lr_multiplier
from vaerun.training.step import Step

BATCH = 8


def settings_of(case: Case, **more: Any) -> TrainSettings:
    return TrainSettings(**{"seed": 2, "epochs": 3, "batch_size": BATCH, "learning_rate": 0.01} | case.settings | more)


def step_of(case: Case, device: str = "cpu", source: bool = False, **more: Any) -> Step:
    """A step of the case's objective; on the CPU too, its state is in tensors as on a GPU."""
    split = split_of(case)
    objective = case.make(split)
    objective.to(device)
    split.images = split.images.to(device)
    split.labels = None if split.labels is None else split.labels.to(device)
    settings = settings_of(case, **more)
    optimisers = make_optimisers(objective.phases, settings)
    guard = FiniteGuard(torch.device(device))
    if device == "cpu":
        guard.on_device, guard.first_bad_step = True, torch.tensor(-1)
        for optimiser in optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32)
    generator = torch.Generator(device) if source else None
    return Step(objective, split, settings, optimisers, guard, Ranks(), generator)


def captured(step: Step, number: int = 0, tape: Any = None) -> GraphedStep:
    """The step, captured for full batches and for the last batch of an epoch."""
    repeats = max(phase.repeats for phase in step.objective.phases.values())
    pool = None if tape is not None else torch.cuda.graph_pool_handle()
    sizes = sorted({BATCH, len(step.split) % BATCH or BATCH})
    return GraphedStep(step, sizes, repeats, number, tape or (lambda: CudaGraph(step.generator, pool)))


def steps(stepper: Step | GraphedStep, step: Step, start: int, stop: int) -> None:
    """Run steps start..stop-1 as the training loop does."""
    per_epoch = -(-len(step.split) // BATCH)
    repeats = max(phase.repeats for phase in step.objective.phases.values())
    step.objective.train()
    for number in range(start, stop):
        epoch, i = divmod(number, per_epoch)
        positions = [("epoch", epoch), *(("epoch", epoch, "repeat", r) for r in range(1, repeats))]
        rows = [permutation(len(step.split), step.settings.seed, *p)[i * BATCH : (i + 1) * BATCH] for p in positions]
        multiplier = lr_multiplier(step.settings.schedule, epoch, number / (3 * per_epoch))
        step.begin(number, multiplier)
        stepper.run(number, [row.to(step.device) for row in rows])


def state(step: Step) -> dict[Any, Tensor]:
    """A copy of all tensors that a step mutates."""
    return {name: value.clone() for name, value in step.mutable_tensors().items()}
