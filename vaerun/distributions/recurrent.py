"""A distribution over z = (z_1 ... z_T) whose every piece depends on the pieces before it through a hidden state.

q(z) = prod_t N(z_t; m_t, diag v_t), with (m_t, v_t) a function of a state s_{t-1} that z_1 ... z_{t-1} have led to
(Gregor et al. 2015, eq. 1-2 and 9-10). Drawing and scoring walk the same recurrence, one with z_t = m_t + sqrt(v_t) e_t
and one with the z_t given, so neither inverts the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from vaerun.deprecation import attribute_name
from vaerun.distributions.base import LatentDistribution, as_leaf
from vaerun.distributions.normal import LOG_2PI


class Recurrence(Protocol):
    """What stands behind a RecurrentNormal; states are its own affair, and its methods change none of them."""

    def initial(self, *rows: int) -> Any:
        """The state before the first step, for `rows` = (..., B)."""
        ...

    def parameters(self, state: Any) -> tuple[Tensor, Tensor, Any]:
        """Mean and log-variance [..., B, n] of the next piece, and the state in which it is awaited."""
        ...

    def advance(self, state: Any, z: Tensor) -> Any:
        """The state after that piece [..., B, n]."""
        ...

    def detach(self) -> Self:
        """The same with its parameters held fixed; gradients still pass through the pieces."""
        ...


class RecurrentNormal(LatentDistribution):
    """q(z_t | z_<t) = N(m_t + a_t, diag v_t exp(b_t)), (m_t, log v_t) from a recurrence over the pieces before t.

    Arguments:
        recurrence: gives m_t and log v_t.
        mean_shift, log_variance_shift: a and b, [B, T, n]; zeros: what the recurrence says.
    """

    exact_moments = False

    def __init__(self, recurrence: Recurrence, mean_shift: Tensor, log_variance_shift: Tensor) -> None:
        self.recurrence = recurrence
        self.mean_shift, self.log_variance_shift = mean_shift, log_variance_shift
        batch, self.steps, self.step_dim = mean_shift.shape
        super().__init__(torch.Size([batch]), torch.Size([self.steps * self.step_dim]), validate_args=False)

    def transform(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Standard normal noise [..., B, d] -> z [..., B, d] and log q(z) [..., B] in nats, both differentiable."""
        return self._unroll(noise, lambda e, mean, log_variance: (mean + torch.exp(0.5 * log_variance) * e, e))

    def log_prob(self, z: Tensor) -> Tensor:
        """[..., B, d] -> [..., B] nats."""
        return self._unroll(z, lambda z, mean, log_variance: (z, (z - mean) * torch.exp(-0.5 * log_variance)))[1]

    def _unroll(
        self, inputs: Tensor, step: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """z and log q(z), where step makes (z_t, e_t) of what is given for t, mean and log-variance [..., B, n]."""
        state = self.recurrence.initial(*inputs.shape[:-1])
        pieces, log_q = [], inputs.new_zeros(inputs.shape[:-1])
        for t, part in enumerate(inputs.split(self.step_dim, -1)):
            mean, log_variance, state = self.recurrence.parameters(state)
            mean = mean + self.mean_shift[:, t]
            log_variance = log_variance + self.log_variance_shift[:, t]
            z, noise = step(part, mean, log_variance)
            pieces.append(z)
            log_q = log_q - 0.5 * (noise.square() + log_variance + LOG_2PI).sum(-1)
            if t + 1 < self.steps:  # nothing awaits the last piece
                state = self.recurrence.advance(state, z)
        return torch.cat(pieces, -1), log_q

    def _detached_recurrence(self) -> Recurrence:
        return getattr(self.recurrence, attribute_name(self.recurrence, "detach", "held"))()

    def detach(self) -> RecurrentNormal:
        return RecurrentNormal(self._detached_recurrence(), self.mean_shift.detach(), self.log_variance_shift.detach())

    def local_parameters(self) -> tuple[list[Tensor], Callable[[], RecurrentNormal]]:
        """Shifts [B, T, n] of each image's own, the recurrence held fixed."""
        recurrence, shifts = self._detached_recurrence(), [as_leaf(self.mean_shift), as_leaf(self.log_variance_shift)]
        return shifts, lambda: RecurrentNormal(recurrence, *shifts)

    def _like(self) -> Tensor:
        return self.mean_shift
