"""The interface between objectives and the trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from vaerun.data.dataset import Batch


@dataclass(frozen=True)
class Phase:
    """A set of parameters updated by one optimiser.

    Attributes:
        groups: parameters by learning rate and betas (`network`, `variance`, `generator`, `discriminator`).
        repeats: updates per training step, each on a different batch.
    """

    groups: dict[str, list[nn.Parameter]]
    repeats: int = 1


@dataclass(frozen=True)
class Diagnostics:
    """What an objective reports whenever training metrics are logged.

    Attributes:
        values: scalars by name, logged with the metrics.
        warnings: one line each, shown once for as long as the condition holds.
    """

    values: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class Objective(Protocol):
    """A loss per image for each phase; the only part of training that differs between families of models."""

    phases: dict[str, Phase]

    @property
    def batch_coupling(self) -> str | None:
        """The setting that makes an image's loss depend on the rest of its batch, as KEY=VALUE; None: none does."""
        ...

    def loss(self, phase: str, step: int | Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise [B] and metrics to log {name: [B]}, not reduced.

        `step`, the number of completed steps, is an int, or a tensor [] in a CUDA graph (training/cuda_graph.py): what
        depends on it must then be computed from it on the device.
        """
        ...

    def sync_flags(self, every: Callable[[Tensor], Tensor]) -> None:
        """Called before after_step if processes share the batch; `every` is a logical and over all processes."""
        ...

    def after_step(self, step: int | Tensor) -> None:
        """Called after each training step, e.g. to update moving averages."""
        ...

    def diagnostics(self) -> Diagnostics:
        """Called whenever metrics are logged; may synchronise with the device."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...
    def train(self, mode: bool = True) -> Any: ...
