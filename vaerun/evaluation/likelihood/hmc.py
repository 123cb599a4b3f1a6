"""Hamiltonian Monte Carlo on p(z | c) p(x | z, c)^beta (Neal 2011, "MCMC using Hamiltonian dynamics", section 5.3).

With momentum m ~ N(0, I), a position z of density f moves along the Hamiltonian H(z, m) = -log f(z) + |m|^2 / 2.
Leapfrog steps keep volume and are undone by flipping the momentum, whatever the force, so accepting their end with
probability min(1, exp(H - H')) leaves f invariant, and the kernel is its own reversal: what bidirectional Monte Carlo
rests on. The unit mass suits a prior of unit scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vaerun.models import Joint
from vaerun.randomness import ImageNoise

DEPTH = 1e5  # nats (|z| of about 450 under N(0, I)): beyond it float32 decoders overflow, and no mass is lost
BLOCK = 32  # transitions whose noise is drawn at once: few generators to seed, little to keep
LOG_UNIFORM = 2  # normal numbers that make one log-uniform: -1/2 (a^2 + b^2) is minus a standard exponential


@dataclass(frozen=True)
class State:
    """Positions with everything that any beta needs there, so that a change of beta costs no evaluation.

    Attributes:
        z: [K, B, d].
        log_prior, log_likelihood: [K, B] nats.
        prior_score, likelihood_score: their gradients with respect to z, [K, B, d].
    """

    z: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    prior_score: Tensor
    likelihood_score: Tensor

    def log_density(self, beta: float) -> Tensor:
        """log p(z | c) + beta log p(x | z, c), [K, B] nats."""
        return self.log_prior + beta * self.log_likelihood

    def score(self, beta: float) -> Tensor:
        """Its gradient with respect to z, [K, B, d]."""
        return self.prior_score + beta * self.likelihood_score

    def where(self, accepted: Tensor, other: State) -> State:
        """This state where `accepted` [K, B], elsewhere the other."""
        row = accepted.unsqueeze(-1)
        return State(
            torch.where(row, self.z, other.z),
            torch.where(accepted, self.log_prior, other.log_prior),
            torch.where(accepted, self.log_likelihood, other.log_likelihood),
            torch.where(row, self.prior_score, other.prior_score),
            torch.where(row, self.likelihood_score, other.likelihood_score),
        )


class Target:
    """z [K, B, d] -> State; gradients reach z alone.

    Where the prior's density is more than DEPTH nats below that at its mean, and where the log-likelihood is not
    finite, the likelihood counts as zero: such a place is never moved to, and a sample of the prior there weighs
    nothing. The decoder sees no position beyond DEPTH: a chain that diverges cannot spoil what an image's chains share.
    """

    def __init__(self, joint: Joint) -> None:
        self.joint = joint.detach()
        self.mean = self.joint.prior.mean
        self.floor = self.joint.prior.log_prob(self.mean) - DEPTH

    def __call__(self, z: Tensor) -> State:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_prior = self.joint.prior.log_prob(z)
            (prior_score,) = torch.autograd.grad(log_prior.sum(), z)
            inside = log_prior.detach() > self.floor  # false for NaN
            near = torch.where(inside.unsqueeze(-1), z.detach(), self.mean).requires_grad_()
            log_likelihood = self.joint.log_likelihood(near)
            (likelihood_score,) = torch.autograd.grad(log_likelihood.sum(), near)
        log_likelihood = log_likelihood.detach()
        usable = inside & log_likelihood.isfinite()
        log_likelihood = torch.where(usable, log_likelihood, -math.inf)
        return State(z.detach(), log_prior.detach(), log_likelihood, prior_score, likelihood_score)


def leapfrog(
    target: Target, state: State, momentum: Tensor, beta: float, step_size: Tensor, steps: int
) -> tuple[State, Tensor]:
    """State and momentum [K, B, d] after so many leapfrog steps of size [B]; one evaluation a step."""
    step = step_size.unsqueeze(-1)
    for _ in range(steps):
        momentum = momentum + 0.5 * step * state.score(beta)
        state = target(state.z + step * momentum)
        momentum = momentum + 0.5 * step * state.score(beta)
    return state, momentum


def transition(
    target: Target, state: State, noise: Tensor, beta: float, step_size: Tensor, steps: int
) -> tuple[State, Tensor]:
    """One transition that leaves p(z | c) p(x | z, c)^beta invariant.

    Arguments:
        target: of one batch.
        state: where the chains are.
        noise: standard normal, [K, B, d + LOG_UNIFORM]: the momentum and the number that decides on acceptance.
        beta: inverse temperature.
        step_size: [B]; it may depend on anything but the chains' own past.
        steps: leapfrog steps.

    Returns the new state and the probability of acceptance [K, B]; a proposal that is not finite has probability 0.
    """
    momentum, log_uniform = noise[..., :-LOG_UNIFORM], -0.5 * noise[..., -LOG_UNIFORM:].square().sum(-1)
    proposal, end = leapfrog(target, state, momentum, beta, step_size, steps)
    before = state.log_density(beta) - 0.5 * momentum.square().sum(-1)
    change = proposal.log_density(beta) - 0.5 * end.square().sum(-1) - before
    probability = change.clamp(max=0).exp().nan_to_num(nan=0)
    return proposal.where(log_uniform < change, state), probability  # no comparison with NaN is true


def transition_noise(noise: ImageNoise, stream: str, chains: int, count: int) -> Iterator[Tensor]:
    """Standard normal numbers [K, B, n] for each of so many transitions; n is that of the source."""
    for start in range(0, count, BLOCK):
        table = noise(f"{stream}/{start // BLOCK}", BLOCK * chains).unflatten(0, (BLOCK, chains))
        yield from table[: count - start]
