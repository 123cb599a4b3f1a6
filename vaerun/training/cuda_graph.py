"""Training steps captured once as CUDA graphs and replayed.

A step of a small network consists of hundreds to thousands of small kernels, which a GPU executes faster than Python
can launch them; a graph is a single launch. Everything that changes between steps must then live on the device at a
fixed address: rows of the batch, step number, learning rates, running sums. The generator is reseeded before each
replay, so that a replayed step draws the same noise as an eager one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vaerun.errors import RunError
from vaerun.training.settings import TrainPlan
from vaerun.training.step import Step, global_state_lock

WARMUP_STEPS = 2  # before the capture, for libraries to select kernels and optimisers to allocate moments


class Graph(Protocol):
    """Device operations recorded from a function by `capture`, without executing them, and executed by `replay`."""

    def capture(self, function: Callable[[], None]) -> None: ...
    def replay(self) -> None: ...


class CudaGraph:
    """A CUDA graph on this thread's current stream, which must not be the default stream.

    Arguments:
        generator: generator that the function draws from; None: torch's global generator.
        pool: memory pool, shared between graphs that are never replayed concurrently.
    """

    def __init__(self, generator: torch.Generator | None, pool: Any) -> None:
        self.graph, self.pool = torch.cuda.CUDAGraph(), pool
        if generator is not None:
            self.graph.register_generator_state(generator)

    def capture(self, function: Callable[[], None]) -> None:
        stream = torch.cuda.current_stream()
        # Threads that train other runs may allocate during the capture.
        with torch.cuda.graph(self.graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
            function()

    def replay(self) -> None:
        self.graph.replay()


def capture_step(
    step: Step, plan: TrainPlan, repeats: int, number: int, warn: Callable[[str], None]
) -> Step | GraphedStep:
    """Capture the step as a CUDA graph if settings.compile requests it; otherwise return the step itself.

    Arguments:
        step: step to capture.
        plan: training plan, for the batch sizes.
        repeats: batches per step.
        number: number of steps done.
        warn: called with one line if compile=auto falls back to the eager step.

    Raises RunError if settings.compile=graph and the step cannot be captured.
    """
    compile = step.settings.compile
    if compile == "none" or (compile == "auto" and (step.device.type != "cuda" or step.ranks.size > 1)):
        return step
    pool = torch.cuda.graph_pool_handle()
    try:
        return GraphedStep(step, plan.batch_sizes, repeats, number, lambda: CudaGraph(step.generator, pool))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if compile == "graph":
            problem = f"trainer.compile=graph: this step cannot be captured ({reason})"
            raise RunError(f"{problem}: use none or auto") from error
        if step.generator is not None and step.settings.precision == "tf32":
            raise RunError(
                f"this step cannot be captured ({reason}), and tf32 cannot run eagerly next to other runs of this "
                "process: run them one by one, or set trainer.precision=float32"
            ) from error
        warn(f"the training step cannot be captured as a CUDA graph; running eagerly: {reason}")
        return step


class GraphedStep:
    """A step captured once per batch size, with the same interface as Step.

    Capturing does not change the state of the run.

    Arguments:
        step: step to capture.
        sizes: batch sizes.
        repeats: batches per step.
        number: number of steps done.
        make_graph: returns an empty graph.

    If the step cannot be captured, for example because it reads values on the host, torch's exception propagates.
    """

    def __init__(
        self, step: Step, sizes: Sequence[int], repeats: int, number: int, make_graph: Callable[[], Graph]
    ) -> None:
        self.step = step
        self.number = torch.tensor(number, device=step.device)
        self.rows: dict[int, list[Tensor]] = {}
        self.graphs: dict[int, Graph] = {}
        before = {name: tensor.clone() for name, tensor in step.mutable_tensors().items()}
        step.set_lr_multiplier(1.0)
        with global_state_lock:
            try:
                for size in sizes:
                    row = torch.arange(size, device=step.device)
                    self.rows[size] = [row.clone() for _ in range(repeats)]
                    for _ in range(WARMUP_STEPS):
                        self._run(size)
                    self.graphs[size] = make_graph()
                    self.graphs[size].capture(lambda size=size: self._run(size))  # type: ignore[misc]
            finally:
                self.number.fill_(number)
                for name, tensor in step.mutable_tensors().items():
                    # Tensors created by the first warm-up step (moments, counts and sums) start at zero.
                    tensor.copy_(before[name]) if name in before else tensor.zero_()

    def _run(self, size: int) -> None:
        self.step.run(self.number, self.rows[size])
        self.number += 1

    def run(self, step: int | Tensor, rows: Sequence[Tensor]) -> None:
        """See Step.run; `step` must be one more than in the previous call."""
        size = len(rows[0])
        for buffer, row in zip(self.rows[size], rows, strict=True):
            buffer.copy_(row)
        self.graphs[size].replay()
