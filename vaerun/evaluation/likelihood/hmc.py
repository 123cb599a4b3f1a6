"""Hamiltonian Monte Carlo on p(z | c) p(x | z, c)^beta (Neal 2011, "MCMC using Hamiltonian dynamics", section 5.3).

With momentum m ~ N(0, I), a position z of density f follows the Hamiltonian H(z, m) = -log f(z) + |m|^2 / 2. Leapfrog
steps preserve volume and are reversed by flipping the momentum, whatever the force. Accepting their end point with
probability min(1, exp(H - H')) therefore leaves f invariant, and the kernel is its own reversal, which bidirectional
Monte Carlo relies on. The unit mass suits a prior of unit scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vaerun.models import Joint
from vaerun.randomness import ImageNoise

DEPTH = 1e5  # nats (|z| of about 450 under N(0, I)): beyond it float32 decoders overflow, and there is no mass left
BLOCK = 32  # transitions whose noise is drawn at once: few generators to seed, little memory
LOG_UNIFORM = 2  # normal numbers per log-uniform number: -1/2 (a^2 + b^2) is minus a standard exponential


@dataclass(frozen=True)
class State:
    """Positions of the chains with their log-densities and scores, so that changing beta costs no evaluation.

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
        """This state where `accepted` [K, B] is true, `other` elsewhere."""
        row = accepted.unsqueeze(-1)
        return State(
            torch.where(row, self.z, other.z),
            torch.where(accepted, self.log_prior, other.log_prior),
            torch.where(accepted, self.log_likelihood, other.log_likelihood),
            torch.where(row, self.prior_score, other.prior_score),
            torch.where(row, self.likelihood_score, other.likelihood_score),
        )


class Target:
    """The target density: z [K, B, d] -> State, with gradients with respect to z only.

    Where the prior's density is more than DEPTH nats below that at its mean, or the log-likelihood is not finite, the
    likelihood counts as zero: proposals there are rejected, and a prior sample there has no weight. The decoder is
    never evaluated beyond DEPTH, so a diverging chain cannot corrupt the other chains of its batch.
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
    """State and momentum [K, B, d] after `steps` leapfrog steps of size [B], with one evaluation per step."""
    step = step_size.unsqueeze(-1)
    for _ in range(steps):
        momentum = momentum + 0.5 * step * state.score(beta)
        state = target(state.z + step * momentum)
        momentum = momentum + 0.5 * step * state.score(beta)
    return state, momentum


def transition(
    target: Target, state: State, noise: Tensor, beta: float, step_size: Tensor, steps: int
) -> tuple[State, Tensor]:
    """One HMC transition, which leaves p(z | c) p(x | z, c)^beta invariant.

    Arguments:
        target: the target density of a batch.
        state: of the chains.
        noise: standard normal [K, B, d + LOG_UNIFORM], for the momentum and the acceptance test.
        beta: inverse temperature.
        step_size: [B]; it must not depend on the chains' own past.
        steps: number of leapfrog steps.

    Returns the new state and the acceptance probability [K, B], which is 0 for proposals that are not finite.
    """
    momentum, log_u = noise[..., :-LOG_UNIFORM], -0.5 * noise[..., -LOG_UNIFORM:].square().sum(-1)
    proposal, proposal_momentum = leapfrog(target, state, momentum, beta, step_size, steps)
    initial = state.log_density(beta) - 0.5 * momentum.square().sum(-1)
    change = proposal.log_density(beta) - 0.5 * proposal_momentum.square().sum(-1) - initial
    probability = change.clamp(max=0).exp().nan_to_num(nan=0)
    return proposal.where(log_u < change, state), probability  # comparisons with NaN are false


def transition_noise(noise: ImageNoise, stream: str, chains: int, count: int) -> Iterator[Tensor]:
    """Standard normal noise [K, B, n] for each of `count` transitions; n is that of `noise`."""
    for start in range(0, count, BLOCK):
        block = noise(f"{stream}/{start // BLOCK}", BLOCK * chains).unflatten(0, (BLOCK, chains))
        yield from block[: count - start]
