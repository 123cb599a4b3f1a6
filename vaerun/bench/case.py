"""The parts of a benchmark: variants of one computation, and its minimal work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """The minimal work of an algorithm in one call.

    Attributes:
        flops: of matrix products; a multiplication and an addition count as two.
        bytes: moved to and from memory.
        factorisations: Cholesky factorisations of a batch of matrices.
        solves: triangular solves with one right-hand side for such a batch.
        batch: B, the number of its matrices.
        dim: d of its matrices [d, d].
    """

    flops: float = 0.0
    bytes: float = 0.0
    factorisations: float = 0.0
    solves: float = 0.0
    batch: int = 0
    dim: int = 0


@dataclass(frozen=True)
class Case:
    """One computation in several variants.

    Attributes:
        name: what is computed, at which size.
        unit: what one call is, e.g. "step".
        variants: name -> function that prepares the variant and returns a call of it; the first is vaerun's own.
        work: of vaerun's own variant; None: no floor is known.
        compare: run before the timing; returns named differences between the results of the variants.
        items: number of items, e.g. images, per call, for rates; None: no rate is reported.
        notes: lines to print below the table.
        memory: whether to measure peak memory.
        values: of the size that varies between the variants, to fit exponents of time and memory; empty: all variants
            have one size.
    """

    name: str
    unit: str
    variants: dict[str, Callable[[], Call]]
    work: Work | None = None
    compare: Callable[[], dict[str, float]] | None = None
    items: int | None = None
    notes: list[str] = field(default_factory=list)
    memory: bool = True
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class BenchSettings:
    """How to run benchmarks.

    Attributes:
        device: to run on.
        quick: use tiny sizes, to check that everything works; the times are meaningless.
    """

    device: torch.device
    quick: bool = False

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


Benchmark = Callable[[BenchSettings], Iterator[Case]]
