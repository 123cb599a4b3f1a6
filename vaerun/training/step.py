"""One training step: each phase in turn, its loss averaged over the batch here and nowhere else."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.distributed.collectives import Ranks
from vaerun.objectives import Objective
from vaerun.randomness import derive_seed, use_generator
from vaerun.training.finite_guard import FiniteGuard
from vaerun.training.optimisers import set_rates, update
from vaerun.training.precision import autocast, compare, matmul_precision
from vaerun.training.settings import TrainSettings

process_lock = threading.Lock()
"""Held by the one thread that records, which waits for all of the device, or changes how the process multiplies."""


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Inside, a GPU's work of this thread is in a stream of its own: the default one cannot be recorded."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.default_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.default_stream(device).wait_stream(stream)


class Step:
    """A training step of an objective on a split, made when called.

    Arguments:
        objective, split, settings, optimisers, guard, ranks: the loop's.
        source: where batch noise comes from; None: torch's global generator, which then must be this run's alone.

    Attributes:
        sums: of each metric over images since they were cleared, on the device.
        scale: of the learning rates, as last set.
    """

    def __init__(
        self,
        objective: Objective,
        split: Split,
        settings: TrainSettings,
        optimisers: dict[str, torch.optim.Optimizer],
        guard: FiniteGuard,
        ranks: Ranks,
        source: torch.Generator | None = None,
    ) -> None:
        self.objective, self.split, self.settings, self.optimisers = objective, split, settings, optimisers
        self.guard, self.ranks, self.source = guard, ranks, source
        self.device = split.images.device
        self.sums: dict[str, Tensor] = {}
        self.scale: float | None = None

    def seed(self, step: int) -> None:
        """The step's noise follows from here."""
        # torch.manual_seed sees to all devices: without a GPU it formats a stack of calls, in case there ever is one.
        everywhere = torch.default_generator if self.device.type == "cpu" else torch
        (everywhere if self.source is None else self.source).manual_seed(derive_seed(self.settings.seed, "step", step))

    def set_rates(self, scale: float) -> None:
        """The schedule's part of the learning rates; nothing to do where it is what it was."""
        if scale != self.scale:
            for optimiser in self.optimisers.values():
                set_rates(optimiser, scale)
            self.scale = scale

    def __call__(self, step: int, scale: float, rows: Sequence[Tensor]) -> None:
        """Make step number `step` (from 0) on the images of these rows [B], one batch for each repeat of a phase."""
        self.seed(step)
        self.set_rates(scale)
        self.make(step, rows)

    def make(self, step: int | Tensor, rows: Sequence[Tensor]) -> None:
        """The step alone; its number may be a tensor [] on the device."""
        precision = self.settings.precision
        with self.ranks.shard(len(rows[0])) as share, use_generator(self.source), matmul_precision(precision):
            batches = [self.split.training_batch(row[share.place]) for row in rows]
            for name, phase in self.objective.phases.items():
                for batch in batches[: phase.repeats]:
                    with autocast(precision, self.device):
                        loss, metrics = self.objective.loss(name, step, batch)
                    totals = {key: share.sum(value) for key, value in metrics.items()}
                    how = None, self.settings.clip_norm, self.guard, step, self.ranks
                    norm = update(self.optimisers[name], share.mean(loss), totals, *how)
                    totals[f"gradient_norm/{name}"] = norm * share.own  # of the whole phase, before clipping
                    self.add(totals, phase.repeats)
        if self.ranks.size > 1:
            self.objective.sync_flags(self.ranks.all_true)
        self.objective.after_step(step)

    def add(self, totals: Mapping[str, Tensor], repeats: int) -> None:
        """To the running sums, in place: the mean over a phase's repeats."""
        values = [value if repeats == 1 else value / repeats for value in totals.values()]
        for key, value in zip(totals, values, strict=True):
            if key not in self.sums:
                self.sums[key] = torch.zeros_like(value)
        torch._foreach_add_([self.sums[key] for key in totals], values)

    def compare_precision(self) -> dict[str, dict[str, float]]:
        """By phase, how loss and gradient of the first batch differ from float32's; see precision.compare."""
        images = min(self.settings.batch_size, len(self.split))
        rows, found = torch.arange(images, device=self.device), {}
        training = bool(getattr(self.objective, "training", True))
        self.objective.train(False)  # so that nothing of this is remembered
        for name, phase in self.objective.phases.items():

            def loss(name: str = name) -> Tensor:
                self.seed(0)
                with use_generator(self.source):
                    return self.objective.loss(name, 0, self.split.training_batch(rows))[0].mean()

            parameters = [p for group in phase.groups.values() for p in group]
            with process_lock:
                found[name] = compare(loss, parameters, self.settings.precision, self.device)
        self.objective.train(training)
        return found

    def reduce_metrics(self) -> dict[str, float]:
        """The sums over all processes, by one transfer. Raises RunError where a step was bad (see FiniteGuard)."""
        sums = self.ranks.sum(self.sums)
        first = self.guard.first
        every = [*sums.values()] if first is None else [*sums.values(), first]
        kind = torch.float32 if self.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        values = torch.stack([value.to(kind) for value in every]).tolist() if every else []
        self.guard.check(None if first is None else int(values.pop()))
        return dict(zip(sums, values, strict=True))

    def clear(self) -> None:
        """All sums are zero again."""
        for value in self.sums.values():
            value.zero_()

    def mutable_tensors(self) -> dict[tuple[str | int, ...], Tensor]:
        """All that a step changes and remembers, where it is."""
        found: dict[tuple[str | int, ...], Tensor] = {}
        found |= {("objective", k): v for k, v in self.objective.state_dict().items() if isinstance(v, Tensor)}
        found |= {("sum", k): v for k, v in self.sums.items()}
        found |= {("guard", i): v for i, v in enumerate(self.guard.mutable_tensors)}
        for name, optimiser in self.optimisers.items():
            parameters = [p for group in optimiser.param_groups for p in group["params"]]
            for i, parameter in enumerate(parameters):
                state = optimiser.state.get(parameter, {})
                found |= {("optimiser", name, i, k): v for k, v in state.items() if isinstance(v, Tensor)}
        return found
