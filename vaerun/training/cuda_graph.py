"""Training steps captured once as CUDA graphs and replayed.

A small network's step is hundreds to thousands of small kernels, which a GPU finishes faster than Python can launch
them; a graph is launched as one. Whatever changes from step to step must then live on the device, at a fixed address:
rows of the batch, step number, learning rates, running sums. The generator is reseeded for each step before its replay,
so a replayed step draws what the eager step would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vaerun.errors import RunError
from vaerun.training.settings import TrainPlan
from vaerun.training.step import Step, global_state_lock

WARMUP_STEPS = 2  # before a capture: libraries choose their kernels, optimisers allocate their moments


class Graph(Protocol):
    """Device operations, captured from a function without being executed, and executed by each `replay`."""

    def capture(self, function: Callable[[], None]) -> None: ...
    def replay(self) -> None: ...


class CudaGraph:
    """A CUDA graph on this thread's current stream, which must not be the default stream.

    Arguments:
        generator: that the function draws from; None: torch's global one.
        pool: memory pool, shared by graphs that are never replayed concurrently.
    """

    def __init__(self, generator: torch.Generator | None, pool: Any) -> None:
        self.graph, self.pool = torch.cuda.CUDAGraph(), pool
        if generator is not None:
            self.graph.register_generator_state(generator)

    def capture(self, function: Callable[[], None]) -> None:
        stream = torch.cuda.current_stream()
        # Threads that train other runs may allocate meanwhile.
        with torch.cuda.graph(self.graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
            function()

    def replay(self) -> None:
        self.graph.replay()


def capture_step(
    step: Step, plan: TrainPlan, repeats: int, number: int, warn: Callable[[str], None]
) -> Step | GraphedStep:
    """The step as a CUDA graph where settings.compile asks for one, else the step itself.

    Arguments:
        step: to capture.
        plan: for the batch sizes.
        repeats: batches per step.
        number: steps done so far.
        warn: called with one line where compile=auto falls back to the eager step.

    Raises RunError where settings.compile=graph and the step cannot be captured.
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
    """A step captured once for each batch size, with the interface of the step itself.

    Capturing leaves the run's state unchanged.

    Arguments:
        step: to capture.
        sizes: batch sizes.
        repeats: batches per step.
        number: steps done so far.
        make_graph: returns an empty graph.

    Raises what torch raises for a step that cannot be captured, such as one that reads values on the host.
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
                    # The others were created by the first warm-up step: moments, counts and sums, which start at zero.
                    tensor.copy_(before[name]) if name in before else tensor.zero_()

    def _run(self, size: int) -> None:
        self.step.run(self.number, self.rows[size])
        self.number += 1

    def run(self, step: int | Tensor, rows: Sequence[Tensor]) -> None:
        """See Step.run; `number` must follow that of the previous call."""
        size = len(rows[0])
        for buffer, row in zip(self.rows[size], rows, strict=True):
            buffer.copy_(row)
        self.graphs[size].replay()
