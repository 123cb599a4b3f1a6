"""The inverse autoregressive flow against its definition written out; its posterior is in test_flow_posteriors."""

from __future__ import annotations

import math

import pytest
import torch
from support.models.members import make_model
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.distributions import MultivariateNormal, Normal

from vaerun.distributions import AutoregressiveFlow, DiagonalNormal
from vaerun.inference import InverseAutoregressive
from vaerun.inference.autoregressive import MaskedNetwork

B, D, N = 3, 4, 5  # images, dimensions, width of the context
SIZES = [(1, 1), (1, 3), (2, 2), (4, 3)]  # d, T
sizes = pytest.mark.parametrize(("d", "steps"), SIZES)


def make_networks(d: int, steps: int, hidden: tuple[int, ...] = (9,), n: int = N, scale: float = 1.0) -> nn.ModuleList:
    """Networks of the steps, far enough from the identity for an error to show."""
    networks = nn.ModuleList(MaskedNetwork(d, n, hidden, backwards=k % 2 == 1) for k in range(steps))
    with torch.no_grad():
        for parameter in networks.parameters():
            parameter.normal_(0, scale / (1 if parameter.dim() == 1 else parameter.shape[1] ** 0.5))
    return networks


def make_flow(
    d: int = D, steps: int = 2, b: int = B, **options
) -> tuple[AutoregressiveFlow, list[Tensor], nn.ModuleList]:
    """q, its base's mean and log-variance and its context as leaves, and its networks."""
    networks = make_networks(d, steps, **options)
    leaves = [torch.randn(b, d), 0.7 * torch.randn(b, d), torch.randn(b, N)]
    mean, log_variance, context = (leaf.requires_grad_() for leaf in leaves)
    return AutoregressiveFlow(DiagonalNormal(mean, log_variance), context, list(networks)), leaves, networks


def whole_network(network: MaskedNetwork, z: Tensor, context: Tensor) -> Tensor:
    """m and s side by side, through zuko's own forward on z with the context beside it."""
    return network.masked(torch.cat([z, context.expand(*z.shape[:-1], -1)], -1))


def order(d: int, step: int) -> list[int]:
    return list(range(d)) if step % 2 == 0 else list(range(d))[::-1]


def naive_transform(leaves: list[Tensor], networks: nn.ModuleList, noise: Tensor) -> Tensor:
    """Eq. 13 and 14."""
    mean, log_variance, context = leaves
    z = mean + (log_variance / 2).exp() * noise
    for network in networks:
        m, s = whole_network(network, z, context).chunk(2, -1)
        gate = 1 / (1 + torch.exp(-(s + 1.5)))
        z = gate * z + (1 - gate) * m
    return z


def naive_log_prob(leaves: list[Tensor], networks: nn.ModuleList, z: Tensor) -> Tensor:
    """Entry by entry, differentiable as it stands."""
    mean, log_variance, context = leaves
    log_det = torch.zeros(z.shape[:-1])
    for step in reversed(range(len(networks))):
        entries = [torch.zeros(z.shape[:-1])] * z.shape[-1]
        for i in order(z.shape[-1], step):
            m, s = whole_network(networks[step], torch.stack(entries, -1), context).chunk(2, -1)
            gate = 1 / (1 + torch.exp(-(s[..., i] + 1.5)))
            entries[i] = (z[..., i] - (1 - gate) * m[..., i]) / gate
            log_det = log_det + gate.log()
        z = torch.stack(entries, -1)
    return Normal(mean, (log_variance / 2).exp()).log_prob(z).sum(-1) - log_det


# -- dependencies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("hidden", [(), (5,), (7,), (13, 5, 6)])
def test_outputs_see_the_whole_context_and_all_earlier_dimensions(d, hidden, backwards):
    network = MaskedNetwork(d, N, hidden, backwards=backwards)
    z, context = torch.randn(1, d), torch.randn(1, N)
    earlier = torch.ones(d, d, dtype=torch.bool)
    earlier = earlier.triu(1) if backwards else earlier.tril(-1)
    for output in (0, 1):  # m and s
        of_z, of_context = jacobian(lambda *at, k=output: network(*at)[k], (z, context))
        assert torch.equal(of_z[0, :, 0] != 0, earlier)
        assert (of_context[0, :, 0] != 0).all()


def test_a_network_is_the_masked_network_of_both():
    network, z, context = MaskedNetwork(D, N, [7, 6]), torch.randn(2, 5, B, D), torch.randn(B, N)
    torch.testing.assert_close(torch.cat(network(z, context), -1), whole_network(network, z, context))
    assert torch.cat(network(z[0, 0], context), -1).shape == (B, 2 * D)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_flow_sees_the_context_and_reverses_the_order(steps):
    q, (_, _, context), networks = make_flow(steps=steps, b=1)
    noise = torch.randn(1, 1, D)
    of_noise = jacobian(lambda e: q.transform(e)[0], noise)[0, 0, :, 0, 0]
    assert torch.equal(of_noise != 0, torch.ones(D, D).tril() > 0 if steps == 1 else torch.ones(D, D) > 0)
    of_context = jacobian(lambda h: AutoregressiveFlow(q.base, h, list(networks)).transform(noise)[0], context)
    assert (of_context[0, 0, :, 0].abs() > 1e-6).all()
    posterior = InverseAutoregressive(make_model().inference.encoder, D, steps=steps)
    assert [n.backwards for n in posterior.networks] == [False, True, False][:steps]


def test_steps_begin_near_the_identity():
    networks = make_networks(D, 2, scale=0.0)
    noise, standard = torch.randn(6, B, D), DiagonalNormal(torch.zeros(B, D), torch.zeros(B, D))
    z, _ = AutoregressiveFlow(standard, torch.randn(B, N), list(networks)).transform(noise)
    torch.testing.assert_close(z, noise / (1 + math.exp(-1.5)) ** 2)  # the paper's "close to +1 or +2"


# -- density ----------------------------------------------------------------------------------------------------------


@sizes
@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_samples_are_spelled_out_and_know_their_density(d, steps, leading):
    q, leaves, networks = make_flow(d, steps)
    assert (q.batch_shape, q.event_shape) == ((B,), (d,))
    noise = torch.randn(*leading, B, d)
    z, log_q = q.transform(noise)
    assert (z.shape, log_q.shape) == (noise.shape, noise.shape[:-1])
    torch.testing.assert_close(z, naive_transform(leaves, networks, noise))
    torch.testing.assert_close(log_q, naive_log_prob(leaves, networks, z))
    torch.testing.assert_close(log_q, q.log_prob(z))
    with torch.no_grad():
        torch.testing.assert_close(log_q, q.log_prob(z))
    torch.testing.assert_close(q.centre, q.transform(torch.zeros(1, B, d))[0][0])


@sizes
def test_density_is_that_of_a_change_of_variables(d, steps):
    q, _, _ = make_flow(d, steps, b=1)
    noise = torch.randn(1, d)
    z, log_q = q.transform(noise)
    full = jacobian(lambda e: q.transform(e)[0], noise)[0, :, 0]
    expected = Normal(0, 1).log_prob(noise).sum(-1) - torch.linalg.slogdet(full).logabsdet
    torch.testing.assert_close(log_q, expected)
    torch.testing.assert_close(q.log_prob(z), expected)


def test_single_precision(single_precision):
    q, _, _ = make_flow(16, 4, hidden=(32,))
    z, log_q = q.transform(torch.randn(50, B, 16))
    assert q.log_prob(z).dtype == torch.float32
    torch.testing.assert_close(q.log_prob(z), log_q, atol=1e-3, rtol=1e-4)


def grid(low: float, high: float, n: int) -> tuple[Tensor, float]:
    """Midpoints of n x n cells [n * n, 1, 2], and a cell's area."""
    width = (high - low) / n
    ticks = low + width * (torch.arange(n) + 0.5)
    return torch.cartesian_prod(ticks, ticks).unsqueeze(1), width**2


class Bent(nn.Module):
    """m and s of the second dimension bend with the first (backwards: the first's with the second)."""

    def __init__(self, backwards: bool) -> None:
        super().__init__()
        self.backwards = backwards

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        z = z.flip(-1) if self.backwards else z
        first = torch.ones_like(z[..., 0])
        m = torch.stack([0.5 * first, 3 * z[..., 0].sin()], -1)
        s = torch.stack([0.2 * first, -1.5 + z[..., 0].cos()], -1)
        return (m.flip(-1), s.flip(-1)) if self.backwards else (m, s)


@pytest.mark.parametrize("networks", ["masked", "bent"])
def test_density_integrates_to_one_and_samples_follow_it(networks):
    steps = [Bent(False), Bent(True)] if networks == "bent" else list(make_networks(2, 2, scale=2.0))
    base = DiagonalNormal(torch.zeros(1, 2), torch.tensor([[0.5, 0.0]]))
    q = AutoregressiveFlow(base, 0.3 * torch.randn(1, N), steps).detach()
    points, area = grid(-9, 9, 432)
    at, log_q = points[:, 0], q.log_prob(points)[:, 0]
    density = log_q.exp() * area
    assert float(density.sum()) == pytest.approx(1, abs=1e-6)
    if networks == "bent":  # far from the Gaussian of the same moments
        mean = density @ at
        covariance = (at - mean).mT @ (density.unsqueeze(-1) * (at - mean))
        assert density @ (log_q - MultivariateNormal(mean, covariance).log_prob(at)) > 0.1
    z = q.rsample((40_000,))[:, 0]
    powers = [(1, 0), (0, 1), (2, 0), (0, 2), (1, 1), (3, 0), (2, 1), (1, 2), (0, 3)]
    drawn, known = (torch.stack([v[:, 0] ** i * v[:, 1] ** j for i, j in powers], -1) for v in (z, at))
    error = drawn.std(0) / len(z) ** 0.5
    assert ((drawn.mean(0) - density @ known).abs() < 5 * error).all()
    side = 48  # cells along each axis
    cells, hits = ((((v + 9) * (side / 18)).long() * torch.tensor([side, 1])).sum(-1) for v in (at, z))
    expected = torch.zeros(side**2).index_add_(0, cells, density) * len(z)
    often = expected > 10
    assert often.sum() > 40
    count = torch.bincount(hits, minlength=side**2)
    chi_squared = ((count - expected) ** 2 / expected)[often].sum()
    assert chi_squared < often.sum() + 5 * (2 * often.sum()) ** 0.5


# -- gradients --------------------------------------------------------------------------------------------------------


@sizes
@pytest.mark.parametrize("leading", [(), (5,)])
def test_gradients_of_the_density_are_those_of_differentiating_the_inversion(d, steps, leading):
    q, leaves, networks = make_flow(d, steps)
    z = torch.randn(*leading, B, d).requires_grad_()
    inputs = [z, *leaves, *networks.parameters()]
    weight = torch.randn(*leading, B)
    actual = torch.autograd.grad((q.log_prob(z) * weight).sum(), inputs)
    expected = torch.autograd.grad((naive_log_prob(leaves, networks, z) * weight).sum(), inputs)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
        assert b.abs().max() > 1e-3


@sizes
def test_total_derivatives_at_a_sample_are_those_of_its_own_density(d, steps):
    # Through z and through the parameters at once.
    q, leaves, networks = make_flow(d, steps)
    inputs = [*leaves, *networks.parameters()]
    z, log_q = q.rsample_with_log_prob((5,))
    weight = torch.randn_like(log_q)
    expected = torch.autograd.grad((log_q * weight).sum(), inputs, retain_graph=True, materialize_grads=True)
    actual = torch.autograd.grad((q.log_prob(z) * weight).sum(), inputs, materialize_grads=True)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_only_one_pass_through_each_network_is_differentiated():
    q, _, networks = make_flow(D, 3)
    passes = []
    for network in networks:
        network.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    q.log_prob(torch.randn(5, B, D))
    assert passes.count(True) == 3
    passes.clear()
    q.transform(torch.randn(5, B, D))
    assert passes == [True] * 3


@sizes
def test_held_lets_gradients_reach_z_alone(d, steps):
    q, leaves, networks = make_flow(d, steps)
    detached = q.detach()
    noise = torch.randn(5, B, d)
    for a, b in zip(detached.transform(noise), q.transform(noise), strict=True):
        torch.testing.assert_close(a, b)
        assert not a.requires_grad
    assert not detached.centre.requires_grad
    z = torch.randn(5, B, d).requires_grad_()
    torch.testing.assert_close(detached.log_prob(z), q.log_prob(z))
    assert not detached.log_prob(z.detach()).requires_grad
    detached.log_prob(z).sum().backward()
    assert all(p.grad is None for p in [*leaves, *networks.parameters()])
    (expected,) = torch.autograd.grad(q.log_prob(z).sum(), z)
    torch.testing.assert_close(z.grad, expected)
    moving = noise.requires_grad_()
    assert torch.autograd.grad(detached.transform(moving)[0].sum(), moving)[0].abs().min() > 0


@sizes
def test_free_gives_each_image_parameters_of_its_own(d, steps):
    q, leaves, networks = make_flow(d, steps)
    parameters, build = q.local_parameters()
    assert [p.shape for p in parameters] == [(B, d), (B, d), (B, N)]
    assert all(p.is_leaf and p.requires_grad for p in parameters)
    noise = torch.randn(5, B, d)
    z = torch.randn(5, B, d)
    torch.testing.assert_close(build().log_prob(z), q.log_prob(z))
    for values in (build().transform(noise)[1], build().transform(noise)[0].sum(-1), build().log_prob(z)):
        gradients = torch.autograd.grad(values[:, 1].sum(), parameters, materialize_grads=True)
        for gradient in gradients:
            assert gradient[[0, 2]].abs().max() == 0
    assert all(g[1].abs().max() > 1e-3 for g in gradients)
    build().log_prob(z).sum().backward()
    assert all(p.grad is None for p in [*leaves, *networks.parameters()])
    with torch.no_grad():
        for p in parameters:
            p.add_(0.3)
    moved = AutoregressiveFlow(DiagonalNormal(leaves[0] + 0.3, leaves[1] + 0.3), leaves[2] + 0.3, list(networks))
    torch.testing.assert_close(build().log_prob(z), moved.log_prob(z))
    assert ((q.log_prob(z) - moved.log_prob(z)).abs() > 1e-6).all()
