"""Annealed importance sampling that starts at an adapted proposal, for images whose posterior the proposal fits badly.

The path from the mixture q to f = p(x, z | c) is f_t = q^(1 - beta_t) f^beta_t, beta_t = t / T. A chain starts at z_0 ~
q, and z_t is drawn from z_{t-1} by a kernel that leaves f_t invariant, t = 1 ... T-1. With

    log w = 1/T sum_{t=1}^T log f(z_{t-1}) - log q(z_{t-1}),    E[w] = p(x | c)    (Neal 2001, section 2),

which is importance sampling with q if T = 1. Where the log-weights of q have variance V, those of the chains have about
V / T if the kernels mix; the path from the prior (likelihood/annealed.py) takes hundreds of times as many temperatures.

With the component's index j as an auxiliary variable, f_t(z) q_j(z) / q(z) has the marginal f_t, where q_j is the part
of q at mode j. A transition draws j given z, then moves z given j by one step of Hamiltonian Monte Carlo in the
coordinates that make q_j's normal a standard one. There the force is minus the position, as for a harmonic oscillator,
plus a small rest. A step of angle h is half a step with the rest, an exact rotation of position and momentum by h, and
another half step with the rest (Shahbaba et al. 2014, "Split Hamiltonian Monte Carlo"). Of a proposal that fits, h =
pi / 2 makes an independent sample. Both parts preserve volume and are reversible, so the kernel is its own reversal.

If x was drawn from the model, a chain in reverse from its latent, an exact sample of the posterior, has the weight of
an exact sample of the extended space. Counted among the K others it makes their mean an upper bound, as in estimate.py.

Angles come from pilot chains with noise of their own; the other chains do not influence them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vaerun.evaluation.adaptive.adaptation import Amis
from vaerun.evaluation.adaptive.estimate import Noise, estimate, rounding
from vaerun.evaluation.adaptive.mixture import DEGREES, Mixture
from vaerun.evaluation.adaptive.mode_search import LogDensity
from vaerun.evaluation.likelihood.importance import effective_sample_size
from vaerun.evaluation.likelihood.pareto import pareto_k, tail_length
from vaerun.tracking.monitor import SILENT, Monitor

PILOTS = 8  # chains that choose the angles: their mean acceptance has a standard error of about 0.1
ANGLE, MAX_ANGLE = 0.7, math.pi / 2  # the first angle, and that of an independent sample
ACCEPTANCE = 0.75  # of the pilot chains; log angle += acceptance - ACCEPTANCE after each transition
REACH = 10.0  # in standard deviations per dimension: a chain proposes nothing beyond it, where a decoder may overflow
GRADIENT_MEMORY = 4  # times that of a density


@dataclass(frozen=True)
class _State:
    """Chains and what the path needs to know where they are, so that changing beta costs no evaluation.

    Attributes:
        z: [B, K, d].
        log_f: [B, K] nats.
        gradient: of log f with respect to z, [B, K, d].
        log_q: of each component of q, its weight included, [B, K, C] nats.
        white: z in the coordinates in which each component has mean 0 and precision 1, [B, K, C, d].
    """

    z: Tensor
    log_f: Tensor
    gradient: Tensor
    log_q: Tensor
    white: Tensor

    def where(self, accepted: Tensor, other: _State) -> _State:
        """This state where `accepted` [B, K] is true, `other` elsewhere."""
        values = (
            torch.where(accepted.view(*accepted.shape, *[1] * (mine.dim() - 2)), mine, theirs)
            for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)
        )
        return _State(*values)

    @property
    def log_weight(self) -> Tensor:
        """log f - log q, [B, K]."""
        return self.log_f - torch.logsumexp(self.log_q, -1)


class _Path:
    """The densities f_t and the transitions that leave them invariant."""

    def __init__(self, target: LogDensity, proposal: Mixture, chunk: int, monitor: Monitor) -> None:
        self.target, self.proposal, self.chunk, self.monitor = target, proposal, chunk, monitor
        components = proposal.components
        self.modes, self.dim = len(components) // 2, components.mean.shape[-1]
        eye = torch.eye(self.dim, dtype=components.mean.dtype, device=components.mean.device)
        lower = components.cholesky[:, self.modes :]
        self.inverse = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)  # of the normals
        self.mean = components.mean[:, self.modes :]

    def state(self, z: Tensor) -> _State:
        """The state of chains at z [B, K, d]."""
        components = self.proposal.components
        log_q = components.log_prob(z) + self.proposal.weight.log().unsqueeze(1)
        white = ((z.unsqueeze(1) - components.mean.unsqueeze(2)) @ components.cholesky).transpose(1, 2)
        values, gradients = [], []
        for part in z.split(max(1, self.chunk // len(z)), 1):
            self.monitor.check()
            value, gradient = self.target.value_and_gradient(part.transpose(0, 1).contiguous())
            values.append(value.T.to(log_q.dtype))
            gradients.append(gradient.transpose(0, 1))
        log_f = torch.cat(values, 1).nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
        return _State(z, log_f, torch.cat(gradients, 1), log_q, white)

    def _density(self, state: _State, beta: float, here: Tensor) -> tuple[Tensor, Tensor]:
        """log of f_t q_j / q [B, K], and its gradient with respect to z [B, K, d]; `here` [B, K, J] is one-hot in j."""
        components, white = self.proposal.components, state.white
        own = torch.where(here.repeat(1, 1, 2) > 0, state.log_q, -math.inf)
        share = torch.softmax(own, -1) - beta * torch.softmax(state.log_q, -1)
        shrink = torch.where(components.heavy, (DEGREES + self.dim) / (DEGREES + white.square().sum(-1)), 1.0)
        pull = (share.to(white.dtype) * shrink).unsqueeze(-1) * white
        factors = components.cholesky.transpose(2, 3).flatten(1, 2)  # [B, C d, d]
        gradient = beta * state.gradient - pull.flatten(2) @ factors
        return beta * state.log_weight + torch.logsumexp(own, -1), gradient

    def _rest(self, gradient: Tensor, position: Tensor, here: Tensor) -> Tensor:
        """The force [B, K, d] in mode j's coordinates, less that of a harmonic oscillator."""
        return _of_mode(gradient, self.inverse.mT, here) + position

    def move(self, state: _State, noise: Tensor, beta: float, angle: Tensor) -> tuple[_State, Tensor]:
        """One transition, which leaves f_t invariant.

        Arguments:
            state: of the chains.
            noise: standard normal [K, B, d + EXTRA_NOISE].
            beta: beta_t.
            angle: h [B]; it must not depend on the chains' own past.

        Returns the new state and the acceptance probability [B, K], which is 0 for proposals that are not finite.
        """
        noise, angle, count = noise.transpose(0, 1), angle.to(noise.dtype).view(-1, 1, 1), self.modes
        momentum, selector, log_u = noise[..., : self.dim], noise[..., self.dim], noise[..., self.dim + 1 :]
        log_u = -0.5 * log_u[..., :2].square().sum(-1)  # minus a standard exponential
        cumulative = torch.softmax(torch.logsumexp(state.log_q.unflatten(-1, (2, count)), -2), -1).cumsum(-1)
        uniform = 0.5 * torch.erfc(-selector * math.sqrt(0.5)).to(cumulative.dtype).unsqueeze(-1)
        # Times the last one, which rounding may leave short of 1.
        index = (uniform * cumulative[..., -1:] >= cumulative).sum(-1).clamp(max=count - 1)
        here = F.one_hot(index, count).to(noise.dtype)
        start = (state.white[:, :, count:] * here.unsqueeze(-1)).sum(2)
        log_density, gradient = self._density(state, beta, here)
        energy = 0.5 * momentum.square().sum(-1) - log_density
        momentum = momentum + angle / 2 * self._rest(gradient, start, here)
        position = angle.cos() * start + angle.sin() * momentum
        momentum = angle.cos() * momentum - angle.sin() * start
        # Chains too far out stay where they are, as nothing is proposed there: that is reversible, too.
        reach = torch.maximum(start.square().sum(-1), position.square().sum(-1)) < REACH**2 * self.dim
        z = here @ self.mean + _of_mode(position, self.inverse, here)
        proposal = self.state(torch.where(reach.unsqueeze(-1), z, state.z))
        log_density, gradient = self._density(proposal, beta, here)
        momentum = momentum + angle / 2 * self._rest(gradient, position, here)
        change = energy - 0.5 * momentum.square().sum(-1) + log_density
        change = torch.where(reach, change, -math.inf)
        probability = change.clamp(max=0).exp().nan_to_num(nan=0)
        return proposal.where(log_u < change, state), probability  # comparisons with NaN are false


def _of_mode(rows: Tensor, matrices: Tensor, here: Tensor) -> Tensor:
    """Rows [B, K, d] times the matrix of each one's mode, of matrices [B, J, d, d]; `here` [B, K, J] is one-hot."""
    products = rows @ matrices.permute(0, 2, 1, 3).flatten(2)
    return (products.unflatten(2, (here.shape[2], rows.shape[2])) * here.unsqueeze(-1)).sum(2)


def bridge(
    target: LogDensity,
    proposal: Mixture,
    noise: Noise,
    amis: Amis,
    *,
    exact: Tensor | None = None,
    chunk: int,
    monitor: Monitor = SILENT,
) -> dict[str, Tensor]:
    """Annealed importance sampling from the proposal: the values [B] of `estimate`, of K = amis.chains weights.

    Arguments:
        target, proposal, noise: of the batch.
        amis: the settings.
        exact: samples of the posterior, [B, d], if x was drawn from the model: then also `upper`.
        chunk: latent samples evaluated at once.
        monitor: checked between chunks.
    """
    chains, temperatures = amis.chains, amis.temperatures
    path = _Path(target, proposal, chunk // GRADIENT_MEMORY, monitor)
    state = path.state(proposal.sample(noise("amis/bridge/0", PILOTS + chains).transpose(0, 1)))
    log_w, start = state.log_weight, state.log_f[:, PILOTS:]
    angle, angles = torch.full_like(log_w[:, 0], ANGLE), []
    for t in range(1, temperatures):
        angles.append(angle)
        state, acceptance = path.move(state, noise(f"amis/bridge/{t}", PILOTS + chains), t / temperatures, angle)
        log_w = log_w + state.log_weight
        angle = (angle * torch.exp(acceptance[:, :PILOTS].mean(1) - ACCEPTANCE)).clamp(max=MAX_ANGLE)
    log_w = log_w[:, PILOTS:] / temperatures
    log_sum = torch.logsumexp(log_w, 1)
    largest = torch.topk(log_w, min(tail_length(chains) + 1, chains)).values.T
    k = pareto_k(largest, chains, rounding(start, log_w, state.z.dtype)).to(log_w)
    values = {
        "log_likelihood": log_sum - math.log(chains),
        "effective_sample_size": effective_sample_size(log_w.T),
        "pareto_k": torch.where(log_sum > -math.inf, k, math.inf),
    }
    if exact is not None:
        state = path.state(exact.unsqueeze(1))
        log_exact = state.log_weight
        for t in range(temperatures - 1, 0, -1):
            state, _ = path.move(state, noise(f"amis/reverse/{t}", 1), t / temperatures, angles[t - 1])
            log_exact = log_exact + state.log_weight
        values["upper"] = torch.logaddexp(log_sum, log_exact[:, 0] / temperatures) - math.log(chains + 1)
    return values


def final_estimate(
    target: LogDensity,
    proposal: Mixture,
    reliable: Tensor,
    noise: Noise,
    amis: Amis,
    *,
    exact: Tensor | None = None,
    chunk: int,
    monitor: Monitor = SILENT,
) -> dict[str, Tensor]:
    """Importance sampling where the proposal is reliable [B] bool, elsewhere `bridge`; the values of either.

    The other arguments are those of `bridge`. Also returns `bridged`, which of them, [B] bool.
    """
    parts, order = [], []
    for rows, bridged in ((reliable.nonzero()[:, 0], False), ((~reliable).nonzero()[:, 0], True)):
        if len(rows):
            here = target.select(rows), proposal.select(rows), noise.select(rows)
            options: dict[str, Any] = {
                "exact": None if exact is None else exact[rows],
                "chunk": chunk,
                "monitor": monitor,
            }
            values = bridge(*here, amis, **options) if bridged else estimate(*here, amis.samples, **options)
            parts.append(values | {"bridged": torch.full_like(rows, bridged, dtype=torch.bool)})
            order.append(rows)
    inverse = torch.cat(order).argsort()
    return {name: torch.cat([part[name] for part in parts])[inverse] for name in parts[0]}
