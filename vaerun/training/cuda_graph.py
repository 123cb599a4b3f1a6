"""Training steps recorded once and replayed (CUDA graphs).

A small network's step is some hundred to some thousand small kernels, which a GPU finishes faster than Python can start
them; a recording is started as one. What changes from step to step must then be on the device, at places that stay: the
rows of the batch, the number of the step, the learning rates, the running sums. The generator's seed is set by position
before each replay, so a replayed step draws what the step itself would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vaerun.errors import RunError
from vaerun.training.step import Step, process_lock

WARM_UP = 2  # steps before a recording: libraries choose their kernels, optimisers make their moments


class Capture(Protocol):
    """The operations of a function on device memory, recorded without being made, and made by each `replay`."""

    def record(self, function: Callable[[], None]) -> None: ...
    def replay(self) -> None: ...


class CudaCapture:
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


def capture_step(
    step: Step, sizes: Sequence[int], repeats: int, number: int, warn: Callable[[str], None] | None
) -> Step | GraphedStep:
    """The step recorded where settings.compile asks for it, else as it is.

    Raises RunError where it was asked for by name and cannot be; where `auto` finds that, `warn` is told.
    """
    how = step.settings.compile
    if how == "none" or (how == "auto" and (step.device.type != "cuda" or step.ranks.size > 1)):
        return step
    pool = torch.cuda.graph_pool_handle()
    try:
        return GraphedStep(step, sizes, repeats, number, lambda: CudaCapture(step.source, pool))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        why = str(error).partition("\n")[0]
        if how == "graph":
            raise RunError(f"trainer.compile=graph: this step cannot be recorded ({why}): use none or auto") from error
        if step.source is not None and step.settings.precision == "tf32":
            raise RunError(
                f"this step cannot be recorded ({why}), and other runs of this process multiply otherwise meanwhile: "
                "run them one by one, or set trainer.precision=float32"
            ) from error
        if warn is not None:
            warn(f"the training step cannot be recorded as a CUDA graph, and is made each time instead: {why}")
        return step


class GraphedStep:
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
        self, step: Step, sizes: Sequence[int], repeats: int, number: int, recording: Callable[[], Capture]
    ) -> None:
        self.step = step
        self.number = torch.tensor(number, device=step.device)
        self.rows: dict[int, list[Tensor]] = {}
        self.recordings: dict[int, Capture] = {}
        kept = {place: memory.clone() for place, memory in step.mutable_tensors().items()}
        step.set_rates(1.0)
        with process_lock:
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
                for place, memory in step.mutable_tensors().items():
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
