"""A distribution over z = (z_1 ... z_T) in which z_t depends on z_1 ... z_{t-1} through a recurrent state.

q(z) = prod_t N(z_t; m_t, diag v_t), with (m_t, v_t) a function of the state s_{t-1} after z_1 ... z_{t-1} (Gregor et
al. 2015, eq. 1-2 and 9-10). Sampling and scoring unroll the same recurrence, with z_t = m_t + sqrt(v_t) e_t or with
a given z_t, so neither has to invert the other.
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
    """The recurrence of a RecurrentNormal. States are opaque to it, and no method changes one in place."""

    def initial(self, *rows: int) -> Any:
        """The state before the first step, for the leading shape `rows` = (..., B)."""
        ...

    def parameters(self, state: Any) -> tuple[Tensor, Tensor, Any]:
        """Mean and log-variance [..., B, n] of the next z_t, and the state to advance from."""
        ...

    def advance(self, state: Any, z: Tensor) -> Any:
        """The state after z_t [..., B, n]."""
        ...

    def detach(self) -> Self:
        """The same recurrence with its parameters detached; gradients still flow through z."""
        ...


class RecurrentNormal(LatentDistribution):
    """q(z_t | z_<t) = N(m_t + a_t, diag v_t exp(b_t)), (m_t, log v_t) from a recurrence over z_<t.

    Arguments:
        recurrence: computes m_t and log v_t.
        mean_shift, log_variance_shift: a and b, [B, T, n]; zero unless they are local parameters.
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
        """z and log q(z), where step maps the input, mean and log-variance of step t [..., B, n] to (z_t, e_t)."""
        state = self.recurrence.initial(*inputs.shape[:-1])
        samples, log_q = [], inputs.new_zeros(inputs.shape[:-1])
        for t, value in enumerate(inputs.split(self.step_dim, -1)):
            mean, log_variance, state = self.recurrence.parameters(state)
            mean = mean + self.mean_shift[:, t]
            log_variance = log_variance + self.log_variance_shift[:, t]
            z, noise = step(value, mean, log_variance)
            samples.append(z)
            log_q = log_q - 0.5 * (noise.square() + log_variance + LOG_2PI).sum(-1)
            if t + 1 < self.steps:  # the last state is not needed
                state = self.recurrence.advance(state, z)
        return torch.cat(samples, -1), log_q

    def _detached_recurrence(self) -> Recurrence:
        return getattr(self.recurrence, attribute_name(self.recurrence, "detach", "held"))()

    def detach(self) -> RecurrentNormal:
        return RecurrentNormal(self._detached_recurrence(), self.mean_shift.detach(), self.log_variance_shift.detach())

    def local_parameters(self) -> tuple[list[Tensor], Callable[[], RecurrentNormal]]:
        """The shifts [B, T, n]; the recurrence is shared by all images and detached."""
        recurrence, shifts = self._detached_recurrence(), [as_leaf(self.mean_shift), as_leaf(self.log_variance_shift)]
        return shifts, lambda: RecurrentNormal(recurrence, *shifts)

    def at_mode(self, mode: Tensor, cholesky: Tensor) -> RecurrentNormal:
        """Shifts that lead from each step's mean, after the mode's previous parts, to its next; the scales stay."""
        shifts, parts = [], mode.split(self.step_dim, -1)
        state = self.recurrence.initial(len(mode))
        for t, part in enumerate(parts):
            mean, _, state = self.recurrence.parameters(state)
            shifts.append(part - mean)
            if t + 1 < self.steps:
                state = self.recurrence.advance(state, part)
        return RecurrentNormal(self.recurrence, torch.stack(shifts, 1), self.log_variance_shift)

    def _like(self) -> Tensor:
        return self.mean_shift
