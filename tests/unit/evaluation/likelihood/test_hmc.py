"""Hamiltonian Monte Carlo: reversible, invariant, safe."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from support.models.annealing import (
    QUICK,
    linear_gaussian,
    make_split,
    tempered,
)
from support.models.members import make_data, make_model
from torch import Tensor

from vaerun.evaluation.likelihood.annealed import (
    annealed_importance_sampling,
)
from vaerun.evaluation.likelihood.hmc import Target, leapfrog, transition

# -- the kernel -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["linear", "mlp", "conv"])
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_the_score_is_the_gradient_and_parameters_get_none(network, likelihood):
    model = make_model(likelihood=likelihood, network=network, context="label_prior")
    x, c = make_data(model, 4)
    z = torch.randn(40, 4, 3, requires_grad=True)
    joint = model.joint(x, c)
    state = Target(joint)(z)
    for beta in (0.0, 0.3, 1.0):
        log_density = joint.prior.log_prob(z) + beta * joint.likelihood.log_prob(x, joint.decode(z))
        (score,) = torch.autograd.grad(log_density.sum(), z)
        torch.testing.assert_close(state.log_density(beta), log_density.detach(), atol=1e-9, rtol=0)
        torch.testing.assert_close(state.score(beta), score, atol=1e-9, rtol=0)
    assert not any(value.requires_grad for value in vars(state).values())
    held = Target(joint).joint
    assert not any(p.requires_grad for p in held.decoder.parameters())
    assert not held.prior.mean.requires_grad
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_leapfrog_is_undone_by_flipping_the_momentum(beta):
    model = make_model(context="label_prior")
    x, c = make_data(model, 4)
    target, step = Target(model.joint(x, c)), torch.tensor([0.02, 0.05, 0.1, 0.2])
    start, momentum = target(torch.randn(6, 4, 3)), torch.randn(6, 4, 3)
    there, end = leapfrog(target, start, momentum, beta, step, 7)
    assert ((there.z - start.z).abs().amax((0, 2)) > step).all()
    back, first = leapfrog(target, there, -end, beta, step, 7)
    torch.testing.assert_close(back.z, start.z, atol=1e-12, rtol=0)
    torch.testing.assert_close(first, -momentum, atol=1e-12, rtol=0)


def test_leapfrog_keeps_energy_to_second_order_and_volume():
    model = make_model(context="label_prior")
    x, c = make_data(model, 3)
    target = Target(model.joint(x, c))
    z, momentum = torch.randn(5, 3, 3), torch.randn(5, 3, 3)

    def run(z: Tensor, momentum: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        state, end = leapfrog(target, target(z), momentum, 0.7, torch.full((3,), 0.4 / steps), steps)
        return state.z, end, -state.log_density(0.7) + 0.5 * end.square().sum(-1)

    before = -target(z).log_density(0.7) + 0.5 * momentum.square().sum(-1)
    errors = [float((run(z, momentum, steps)[2] - before).abs().max()) for steps in (40, 80, 160)]
    assert errors[2] < 0.01
    for coarse, fine in pairwise(errors):
        assert 3.5 < coarse / fine < 4.5
    # |d(z', m') / d(z, m)| = 1 by central differences; no graph runs through a trajectory.
    columns = []
    for i in range(6):
        shift = torch.zeros(2, 1, 3, 3)
        shift[i // 3, ..., i % 3] = 1e-5
        ends = [torch.cat(run(z + s * shift[0], momentum + s * shift[1], 4)[:2], -1) for s in (1, -1)]
        columns.append((ends[0] - ends[1]) / 2e-5)
    log_volume = torch.linalg.slogdet(torch.stack(columns, -1)).logabsdet
    torch.testing.assert_close(log_volume, torch.zeros(5, 3), atol=1e-7, rtol=0)


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("context", ["plain", "label_prior"])
def test_a_transition_leaves_a_gaussian_as_it_is(beta, context):
    model = linear_gaussian(context)
    x, c = make_data(model, 3)
    exact, target, chains = tempered(model, x, c, beta), Target(model.joint(x, c)), 20_000
    scale = exact.covariance_matrix.diagonal(dim1=-2, dim2=-1).min(-1).values.sqrt()
    white = torch.linalg.inv(torch.linalg.cholesky(exact.covariance_matrix))
    start = state = target(exact.sample((chains,)))
    for _ in range(3):  # a step so long that about half is rejected: without the correction the moments would be off
        state, probability = transition(target, state, torch.randn(chains, 3, 4), beta, 1.5 * scale, 2)
    assert ((probability.mean(0) > 0.3) & (probability.mean(0) < 0.97)).all()
    assert ((state.z - start.z).abs().amax(-1) > 0).double().mean() > 0.6
    u = ((state.z - exact.mean).unsqueeze(-2) @ white.mT).squeeze(-2)  # N(0, I)
    assert (u.mean(0).abs() < 4.5 / chains**0.5).all()
    second = torch.einsum("kbi,kbj->bij", u, u) / chains
    assert ((second - torch.eye(2)).abs() < 4.5 * 2**0.5 / chains**0.5).all()
    assert (((u**4).mean(0) - 3).abs() < 4.5 * 96**0.5 / chains**0.5).all()


def test_acceptance_is_decided_by_a_uniform_number():
    model = make_model()
    x, _ = make_data(model, 3)
    target, noise, step = Target(model.joint(x)), torch.randn(4000, 3, 5), torch.full((3,), 0.45)
    state = target(0.5 * torch.randn(4000, 3, 3))
    moved, probability = transition(target, state, noise, 1.0, step, 3)
    proposal, end = leapfrog(target, state, noise[..., :3], 1.0, step, 3)
    change = proposal.log_density(1) - state.log_density(1) + 0.5 * (noise[..., :3] ** 2 - end**2).sum(-1)
    torch.testing.assert_close(probability, change.exp().clamp(max=1), atol=1e-12, rtol=1e-9)
    accepted = (moved.z != state.z).all(-1)
    for name in vars(state):
        row = accepted if getattr(state, name).dim() == 2 else accepted.unsqueeze(-1)
        expected = torch.where(row, getattr(proposal, name), getattr(state, name))
        torch.testing.assert_close(getattr(moved, name), expected, atol=0, rtol=0)
    assert 0.2 < probability.mean() < 0.8
    spread = (probability * (1 - probability)).sum() ** 0.5
    assert abs(accepted.sum() - probability.sum()) < 4 * spread
    uniform = torch.exp(-0.5 * noise[..., 3:].square().sum(-1)).flatten().sort().values
    ranks = torch.linspace(0, 1, uniform.numel())
    assert (uniform - ranks).abs().max() < 2 / uniform.numel() ** 0.5  # Kolmogorov-Smirnov, p below 0.001


class Broken(torch.nn.Module):
    """A decoder that is not finite on one side and overflows far out."""

    affine = None

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return (
            (z[..., :1].add(1).sqrt() + torch.exp(z.square()))
            .unsqueeze(-1)
            .unsqueeze(-1)
            .expand(*z.shape[:-1], 1, 3, 4)
        )


def test_what_is_not_finite_is_never_moved_to():
    model = make_model(d=1)
    model.decoder = Broken()
    x = torch.full((2, 1, 3, 4), 2.0)
    target = Target(model.joint(x))
    z = torch.tensor([0.0, -2.0, 40.0, 1e9, math.inf, math.nan]).reshape(-1, 1, 1).expand(-1, 2, 1)
    state = target(z)
    assert state.log_likelihood[0].isfinite().all()
    assert (state.log_likelihood[1:] == -math.inf).all()
    safe = target(torch.zeros(2000, 2, 1))
    moved, probability = transition(target, safe, 3 * torch.randn(2000, 2, 3), 1.0, torch.tensor([0.5, 1e300]), 3)
    assert (probability[:, 1] == 0).all()
    assert 0 < (probability[:, 0] == 0).sum() < 2000
    assert probability.isfinite().all()
    for value in vars(moved).values():
        assert value.isfinite().all()
    result = annealed_importance_sampling(model, make_split(model, 3), QUICK, seed=0)
    assert all(value.isfinite().all() for value in result.values())
    # A chain that diverges leaves the others alone, though the Gram path expands about the mean over chains.
    model = make_model(network="relu", d=1)
    target = Target(model.joint(x))
    z = torch.randn(200, 2, 1)
    assert target.joint._gram_is_cheaper(z)
    alone = target(z).log_likelihood
    z[7] = math.inf
    torch.testing.assert_close(target(z).log_likelihood[:7], alone[:7], atol=1e-9, rtol=0)
    # With no finite likelihood anywhere the estimate is minus infinity and no chain counts.
    with torch.no_grad():
        model.decoder.affine.bias.fill_(math.nan)
    result = annealed_importance_sampling(model, make_split(model, 2), QUICK, seed=0)
    assert (result["ais"] == -math.inf).all()
    assert (result["ais_ess"] == 0).all()
