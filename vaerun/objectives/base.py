"""The contract between an objective and the trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from vaerun.data.dataset import Batch


@dataclass(frozen=True)
class Phase:
    """A set of parameters that one optimiser updates.

    Attributes:
        groups: parameters by the learning rate that they take (`network`, `variance`).
        repeats: updates per training step.
    """

    groups: dict[str, list[nn.Parameter]]
    repeats: int = 1


class Objective(Protocol):
    """Loss per image, phase by phase; families of models differ in this alone."""

    phases: dict[str, Phase]

    def loss(self, phase: str, step: int, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss [B] to descend and metrics {name: [B]} to report, none of them reduced."""
        ...

    def after_step(self, step: int) -> None:
        """Called once after each training step (moving averages)."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...
    def train(self, mode: bool = True) -> Any: ...
