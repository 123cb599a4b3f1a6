"""The contract of every estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vaerun.distributions import LatentDistribution
from vaerun.models import Joint


@dataclass(frozen=True)
class Estimate:
    """What an estimator gives; nothing is reduced over the batch.

    Attributes:
        bound: [B] nats, to report.
        surrogate: [B], to ascend; its value means nothing unless it is the bound itself.
        terms: named parts of the bound, each [B] nats.
    """

    bound: Tensor
    surrogate: Tensor
    terms: dict[str, Tensor]


class Estimator(Protocol):
    """A function of a joint, a distribution over z and the number of samples K."""

    def __call__(self, joint: Joint, q: LatentDistribution, samples: int) -> Estimate: ...
