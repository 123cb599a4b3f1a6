"""Distributions over z against torch's multivariate normals, and their KL rules against exact values."""

from __future__ import annotations

import pytest
import torch
from support.models.members import FAMILIES, NO_KL, PRIORS, reflections
from torch.distributions import kl_divergence

from vaerun.distributions import DiagonalNormal, HouseholderNormal, StandardNormal

B, D = 3, 4
SIZES = [(B, D), (1, 1), (2, 1), (1, 3)]
family = pytest.mark.parametrize("name", FAMILIES)
size = pytest.mark.parametrize(("b", "d"), SIZES)


@family
@size
@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_log_prob_is_that_of_torch(name, b, d, leading):
    q, truth, _ = FAMILIES[name](b, d)
    z = 2 * torch.randn(*leading, b, d)
    assert (q.batch_shape, q.event_shape) == ((b,), (d,))
    torch.testing.assert_close(q.log_prob(z), truth.log_prob(z))


@family
@size
def test_moments_are_those_of_torch(name, b, d):
    q, truth, _ = FAMILIES[name](b, d)
    torch.testing.assert_close(q.mean, truth.mean)
    torch.testing.assert_close(q.variance, truth.variance)
    if name != "standard":
        torch.testing.assert_close(q.covariance_matrix, truth.covariance_matrix)


@family
@size
@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_a_sample_knows_its_own_density(name, b, d, leading):
    q, truth, _ = FAMILIES[name](b, d)
    z, log_q = q.rsample_with_log_prob(leading)
    assert z.shape == (*leading, b, d)
    assert log_q.shape == (*leading, b)
    torch.testing.assert_close(log_q, truth.log_prob(z))
    torch.testing.assert_close(log_q, q.log_prob(z))


@family
@size
def test_noise_is_mapped_to_the_exact_mean_and_covariance(name, b, d):
    # z is affine in the noise: its value at 0 is the mean, and A A' of its columns at unit noise is the covariance.
    q, truth, _ = FAMILIES[name](b, d)
    centre, _ = q.transform(torch.zeros(1, b, d))
    units, _ = q.transform(torch.eye(d).unsqueeze(1).expand(d, b, d))
    a = (units - centre).permute(1, 2, 0)
    torch.testing.assert_close(centre[0], truth.mean)
    torch.testing.assert_close(a @ a.mT, truth.covariance_matrix)


@family
def test_noise_of_any_leading_shape(name):
    q, _, _ = FAMILIES[name](B, D)
    noise = torch.randn(2, 5, B, D)
    z, log_q = q.transform(noise)
    for i in range(2):
        row, log_row = q.transform(noise[i])
        torch.testing.assert_close(z[i], row)
        torch.testing.assert_close(log_q[i], log_row)
        for k in range(5):
            z_k, log_q_k = q.transform(noise[i, k])
            torch.testing.assert_close(z[i, k], z_k)
            torch.testing.assert_close(log_q[i, k], log_q_k)


@family
def test_samples_come_from_the_global_generator_or_the_given_noise(name):
    q, _, _ = FAMILIES[name](B, D)
    torch.manual_seed(5)
    z = q.rsample((6,))
    torch.manual_seed(5)
    noise = torch.randn(6, B, D)
    state = torch.get_rng_state()
    torch.testing.assert_close(z, q.transform(noise)[0])
    torch.testing.assert_close(z, q.rsample_with_log_prob((6,), noise=noise)[0])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "standard"])
def test_gradients_of_a_sample_are_those_of_torch(name):
    # log q of a moving sample: through z and through the parameters at once.
    q, truth, parameters = FAMILIES[name](B, D)
    z, log_q = q.rsample_with_log_prob((5,))
    weight = torch.randn_like(log_q)
    actual = torch.autograd.grad((log_q * weight).sum(), parameters, retain_graph=True, materialize_grads=True)
    for density in (q, truth):
        value = (density.log_prob(z) * weight).sum()
        expected = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b)


@family
def test_held_keeps_the_values_and_passes_no_gradient_to_parameters(name):
    q, _, parameters = FAMILIES[name](B, D)
    detached = q.detach()
    z = torch.randn(5, B, D).requires_grad_()
    torch.testing.assert_close(detached.log_prob(z), q.log_prob(z))
    torch.testing.assert_close(detached.mean, q.mean)
    noise = torch.randn(5, B, D)
    for a, b in zip(detached.transform(noise), q.transform(noise), strict=True):
        torch.testing.assert_close(a, b)
        assert not a.requires_grad
    detached.log_prob(z).sum().backward()
    assert z.grad is not None  # z itself is not detached
    assert all(p.grad is None for p in parameters)
    if parameters:
        assert q.log_prob(z).requires_grad


# -- reflections ------------------------------------------------------------------------------------------------------


def test_reflecting_twice_by_one_vector_is_the_identity():
    v = torch.randn(1, B, D)
    q = HouseholderNormal(torch.zeros(B, D), torch.zeros(B, D), v.expand(2, -1, -1))
    z = torch.randn(5, B, D)
    torch.testing.assert_close(q.reflect(z), z)
    once = HouseholderNormal(torch.zeros(B, D), torch.zeros(B, D), v).reflect(z)
    assert (once - z).abs().max() > 0.1
    torch.testing.assert_close(once, z - 2 * v * (z * v).sum(-1, keepdim=True) / v.square().sum(-1, keepdim=True))


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_reflections_keep_norms_invert_and_follow_their_order(steps):
    vectors = torch.randn(steps, B, D)
    q = HouseholderNormal(torch.zeros(B, D), torch.zeros(B, D), vectors)
    z = torch.randn(5, B, D)
    reflected = q.reflect(z)
    torch.testing.assert_close(reflected.norm(dim=-1), z.norm(dim=-1))
    torch.testing.assert_close(q.reflect(reflected, inverse=True), z)
    torch.testing.assert_close(q.reflect(q.reflect(z, inverse=True)), z)
    torch.testing.assert_close(reflected, (reflections(vectors) @ z.unsqueeze(-1)).squeeze(-1))


def test_a_zero_vector_reflects_nothing():
    mean, log_variance, v = torch.randn(B, D), torch.randn(B, D), torch.randn(1, B, D)
    vectors = torch.cat([v, torch.zeros_like(v), torch.randn_like(v)]).requires_grad_()
    q = HouseholderNormal(mean, log_variance, vectors)
    z = torch.randn(5, B, D)
    torch.testing.assert_close(q.reflect(z), HouseholderNormal(mean, log_variance, vectors[::2]).reflect(z))
    still = HouseholderNormal(mean, log_variance, torch.zeros(2, B, D))
    torch.testing.assert_close(still.log_prob(z), DiagonalNormal(mean, log_variance).log_prob(z))
    q.log_prob(z).sum().backward()
    assert vectors.grad.isfinite().all()


# -- Kullback-Leibler divergences -------------------------------------------------------------------------------------

PAIRS = [(q, p) for q in FAMILIES for p in PRIORS if (q, p) not in NO_KL]


@pytest.mark.parametrize(("q_name", "p_name"), PAIRS)
@size
def test_kl_is_that_of_torch(q_name, p_name, b, d):
    (q, q_truth, _), (p, p_truth, _) = FAMILIES[q_name](b, d), FAMILIES[p_name](b, d)
    torch.testing.assert_close(kl_divergence(q, p), kl_divergence(q_truth, p_truth))


@pytest.mark.parametrize(("q_name", "p_name"), PAIRS)
def test_kl_is_the_mean_log_ratio(q_name, p_name):
    (q, _, _), (p, _, _) = FAMILIES[q_name](B, D), FAMILIES[p_name](B, D)
    z, log_q = q.rsample_with_log_prob((20_000,))
    ratio = log_q - p.log_prob(z)
    error = ratio.std(0) / len(ratio) ** 0.5
    assert ((ratio.mean(0) - kl_divergence(q, p)).abs() < 5 * error).all()


@pytest.mark.parametrize("name", ["householder1", "householder3"])
def test_kl_of_a_householder_normal_is_that_of_its_base(name):
    q, _, _ = FAMILIES[name](B, D)
    prior = StandardNormal(torch.zeros(B, D))
    torch.testing.assert_close(kl_divergence(q, prior), kl_divergence(q.base, prior))


@pytest.mark.parametrize("name", ["householder1", "householder3"])
def test_no_kl_between_a_householder_normal_and_another_prior(name):
    (q, _, _), (p, _, _) = FAMILIES[name](B, D), FAMILIES["diagonal"](B, D)
    with pytest.raises(NotImplementedError):
        kl_divergence(q, p)
