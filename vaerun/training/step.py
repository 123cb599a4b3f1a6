"""One training step: each phase in turn, its loss averaged over the batch here and nowhere else.

A step is made as it is called for, or recorded once and replayed. A small network's step is some hundred to some
thousand small kernels, which a GPU finishes faster than Python can start them; a recording (a CUDA graph) is started as
one. What changes from step to step must then be on the device, at places that stay: the rows of the batch, the number
of the step, the learning rates, the running sums. The generator's seed is set by position before each replay, so a
replayed step draws what the step itself would have drawn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.errors import RunError
from vaerun.objectives import Objective
from vaerun.randomness import drawing_from, mix
from vaerun.training.guard import FiniteGuard
from vaerun.training.precision import compare, layers, products
from vaerun.training.ranks import Ranks
from vaerun.training.settings import TrainSettings
from vaerun.training.update import set_rates, update

WARM_UP = 2  # steps before a recording: libraries choose their kernels, optimisers make their moments


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
        (torch if self.source is None else self.source).manual_seed(mix(self.settings.seed, "step", step))

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
        with self.ranks.share(len(rows[0])) as share, drawing_from(self.source), products(precision):
            batches = [self.split.training_batch(row[share.place]) for row in rows]
            for name, phase in self.objective.phases.items():
                for batch in batches[: phase.repeats]:
                    with layers(precision, self.device):
                        loss, metrics = self.objective.loss(name, step, batch)
                    totals = {key: share.sum(value) for key, value in metrics.items()}
                    how = None, self.settings.clip_norm, self.guard, step, self.ranks
                    norm = update(self.optimisers[name], share.mean(loss), totals, *how)
                    totals[f"gradient_norm/{name}"] = norm * share.own  # of the whole phase, before clipping
                    self.add(totals, phase.repeats)
        if self.ranks.size > 1:
            self.objective.agree(self.ranks.every)
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
                with drawing_from(self.source):
                    return self.objective.loss(name, 0, self.split.training_batch(rows))[0].mean()

            parameters = [p for group in phase.groups.values() for p in group]
            with alone:
                found[name] = compare(loss, parameters, self.settings.precision, self.device)
        self.objective.train(training)
        return found

    def look(self) -> dict[str, float]:
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

    def memory(self) -> dict[tuple[str | int, ...], Tensor]:
        """All that a step changes and remembers, where it is."""
        found: dict[tuple[str | int, ...], Tensor] = {}
        found |= {("objective", k): v for k, v in self.objective.state_dict().items() if isinstance(v, Tensor)}
        found |= {("sum", k): v for k, v in self.sums.items()}
        found |= {("guard", i): v for i, v in enumerate(self.guard.memory)}
        for name, optimiser in self.optimisers.items():
            parameters = [p for group in optimiser.param_groups for p in group["params"]]
            for i, parameter in enumerate(parameters):
                state = optimiser.state.get(parameter, {})
                found |= {("optimiser", name, i, k): v for k, v in state.items() if isinstance(v, Tensor)}
        return found


class Recording(Protocol):
    """The operations of a function on device memory, recorded without being made, and made by each `replay`."""

    def record(self, function: Callable[[], None]) -> None: ...
    def replay(self) -> None: ...


class CudaRecording:
    """A CUDA graph on this thread's current stream, which must not be the default one.

    Arguments:
        source: the generator that the function draws from; None: torch's global one.
        pool: memory that recordings which are never replayed at the same time share.
    """

    def __init__(self, source: torch.Generator | None, pool: Any) -> None:
        self.graph, self.pool = torch.cuda.CUDAGraph(), pool
        if source is not None:
            self.graph.register_generator_state(source)

    def record(self, function: Callable[[], None]) -> None:
        stream = torch.cuda.current_stream()
        # Other threads, which train other runs, may allocate meanwhile.
        with torch.cuda.graph(self.graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
            function()

    def replay(self) -> None:
        self.graph.replay()


def recorded(
    step: Step, sizes: Sequence[int], repeats: int, number: int, warn: Callable[[str], None] | None
) -> Step | Recorded:
    """The step recorded where settings.compile asks for it, else as it is.

    Raises RunError where it was asked for by name and cannot be; where `auto` finds that, `warn` is told.
    """
    how = step.settings.compile
    if how == "none" or (how == "auto" and (step.device.type != "cuda" or step.ranks.size > 1)):
        return step
    pool = torch.cuda.graph_pool_handle()
    try:
        return Recorded(step, sizes, repeats, number, lambda: CudaRecording(step.source, pool))
    except RuntimeError as error:
        why = str(error).partition("\n")[0]
        if how == "graph":
            raise RunError(f"trainer.compile=graph: this step cannot be recorded ({why}): use none or auto") from error
        if warn is not None:
            warn(f"the training step cannot be recorded as a CUDA graph, and is made each time instead: {why}")
        return step


alone = threading.Lock()
"""Held by the one thread that records, which waits for all of the device, or changes how the process multiplies."""


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Inside, a GPU's work of this thread is in a stream of its own: the default one cannot be recorded."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.default_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.default_stream(device).wait_stream(stream)


class Recorded:
    """A step recorded for every size that a batch of this run has; called like the step itself.

    Making it leaves the run's state as it was.

    Arguments:
        step: to record.
        sizes: numbers of images of a batch.
        repeats: batches of one step.
        number: steps done so far.
        recording: makes an empty Recording.

    Raises whatever the device says of a step that cannot be recorded: one that looks at numbers on the host.
    """

    def __init__(
        self, step: Step, sizes: Sequence[int], repeats: int, number: int, recording: Callable[[], Recording]
    ) -> None:
        self.step = step
        self.number = torch.tensor(number, device=step.device)
        self.rows: dict[int, list[Tensor]] = {}
        self.recordings: dict[int, Recording] = {}
        kept = {place: memory.clone() for place, memory in step.memory().items()}
        step.set_rates(1.0)
        with alone:
            try:
                for size in sizes:
                    row = torch.arange(size, device=step.device)
                    self.rows[size] = [row.clone() for _ in range(repeats)]
                    for _ in range(WARM_UP):
                        self._make(size)
                    self.recordings[size] = recording()
                    self.recordings[size].record(lambda size=size: self._make(size))  # type: ignore[misc]
            finally:
                self.number.fill_(number)
                for place, memory in step.memory().items():
                    # What was not there before was made by the first step: moments, counts and sums, all from zero.
                    memory.copy_(kept[place]) if place in kept else memory.zero_()

    def _make(self, size: int) -> None:
        self.step.make(self.number, self.rows[size])
        self.number += 1

    def __call__(self, step: int, scale: float, rows: Sequence[Tensor]) -> None:
        """As Step: make step number `step`, which must be the one after the last, on these rows [B]."""
        size = len(rows[0])
        for place, row in zip(self.rows[size], rows, strict=True):
            place.copy_(row)
        self.step.set_rates(scale)
        self.step.seed(step)
        self.recordings[size].replay()
