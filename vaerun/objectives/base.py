"""The contract between an objective and the trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from vaerun.data.dataset import Batch


@dataclass(frozen=True)
class Phase:
    """A set of parameters that one optimiser updates.

    Attributes:
        groups: parameters by the learning rate and betas that they take (`network`, `variance`, `generator`,
            `discriminator`).
        repeats: updates per training step, each with a batch of its own.
    """

    groups: dict[str, list[nn.Parameter]]
    repeats: int = 1


@dataclass(frozen=True)
class Diagnostics:
    """What an objective says of itself whenever training metrics are recorded.

    Attributes:
        values: numbers by name, recorded beside the metrics.
        warnings: a line each, told once for as long as it stays true.
    """

    values: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class Objective(Protocol):
    """Loss per image, phase by phase; families of models differ in this alone."""

    phases: dict[str, Phase]

    @property
    def batch_coupling(self) -> str | None:
        """The setting by which the loss of an image depends on the others of its batch; None: there is none."""
        ...

    def loss(self, phase: str, step: int | Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss [B] to descend and metrics {name: [B]} to report, none of them reduced.

        `step` (steps done) is an int, or where steps are recorded (training/cuda_graph.py) a tensor []: what
        depends on it must then be computed from it on the device.
        """
        ...

    def sync_flags(self, every: Callable[[Tensor], Tensor]) -> None:
        """Called before after_step where processes share the batch; `every` is a logical and over all of it."""
        ...

    def after_step(self, step: int | Tensor) -> None:
        """Called once after each training step (moving averages)."""
        ...

    def diagnostics(self) -> Diagnostics:
        """Called whenever metrics are recorded; it may wait for the device."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...
    def train(self, mode: bool = True) -> Any: ...
