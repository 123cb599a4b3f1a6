"""What a benchmark is made of: forms of one computation, and what that computation needs at least."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """The least that an algorithm has to do in one call.

    Attributes:
        products: floating-point operations in matrix products, a multiplication and an addition each counted.
        bytes: moved to and from memory.
        factors: Cholesky factorisations of a batch of matrices.
        solves: triangular solves with one right-hand side for such a batch.
        matrices: B of the batch.
        size: d of its matrices [d, d].
    """

    products: float = 0.0
    bytes: float = 0.0
    factors: float = 0.0
    solves: float = 0.0
    matrices: int = 0
    size: int = 0


@dataclass(frozen=True)
class Case:
    """One computation in several forms.

    Attributes:
        name: what is computed, at which size.
        unit: what one call is, e.g. "step".
        forms: by name, what prepares the form and returns one call of it; the first is vaerun's own.
        work: of vaerun's own form; None: no floor is known.
        compare: relative or absolute differences between the forms by what they are called, before anything is timed.
        items: images, say, that one call handles, for rates; None: no rate is told.
        notes: lines to be printed below the table.
        memory: whether the forms' peak memory is measured.
        values: of the size that varies from form to form, to which exponents of time and memory are fitted; empty: the
            forms are of one size.
    """

    name: str
    unit: str
    forms: dict[str, Callable[[], Call]]
    work: Work | None = None
    compare: Callable[[], dict[str, float]] | None = None
    items: int | None = None
    notes: list[str] = field(default_factory=list)
    memory: bool = True
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Setting:
    """How to run.

    Attributes:
        device: where.
        quick: tiny sizes, to see that everything works; its times mean nothing.
    """

    device: torch.device
    quick: bool = False

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


Benchmark = Callable[[Setting], Iterator[Case]]
