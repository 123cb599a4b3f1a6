"""Likelihoods and distributions over z where numbers under- or overflow, in single precision, as real training is.

What is right is computed in double precision from the same numbers.
"""

from __future__ import annotations

import math

import pytest
import torch
from support.models.edges import EPS
from torch.distributions import kl_divergence

from vaerun.distributions import AutoregressiveFlow, DiagonalNormal, HouseholderNormal, PrecisionNormal, StandardNormal
from vaerun.estimators import Minimax, NonSaturating
from vaerun.inference.semi_amortised import clip_per_image
from vaerun.models import Bernoulli, Codes, Gaussian
from vaerun.nets.draw import filterbank

pytestmark = pytest.mark.usefixtures("single_precision")


# -- likelihoods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [20.0, 89.0, 1000.0, 1e30])
def test_bernoulli_logits_of_any_size(size):
    eta = torch.tensor([[size, size, -size, -size]]).reshape(1, 1, 2, 2).requires_grad_()
    x = torch.tensor([1.0, 0.0, 1.0, 0.0]).reshape(1, 1, 2, 2)
    likelihood = Bernoulli()
    value = likelihood.log_prob(x, eta)
    assert value.item() == pytest.approx(-2 * size, rel=1e-6)
    (gradient,) = torch.autograd.grad(value.sum(), eta)
    assert gradient.flatten().tolist() == pytest.approx([0, -1, 1, 0], abs=1e-8)
    torch.testing.assert_close(likelihood.score(x, eta), gradient, atol=1e-8, rtol=0)
    assert likelihood.fisher(eta).abs().max() < 1e-8
    assert likelihood.mean(eta).flatten().tolist() == pytest.approx([1, 1, 0, 0], abs=1e-8)


@pytest.mark.parametrize("variance", [1e-12, 1e-6, 1.0, 1e6, 1e12])
@pytest.mark.parametrize("distance", [0.0, 1e-4, 1.0])
def test_gaussian_variances_that_a_setting_may_have(variance, distance):
    x, eta = torch.full((1, 1, 8, 8), 0.25), torch.full((1, 1, 8, 8), 0.25 + distance, requires_grad=True)
    likelihood = Gaussian(variance)
    exact = torch.distributions.Normal(eta.detach().double(), variance**0.5).log_prob(x.double()).sum()
    value = likelihood.log_prob(x, eta)
    assert value.item() == pytest.approx(float(exact), rel=20 * EPS)
    gradients = torch.autograd.grad(value.sum(), [eta, likelihood.log_variance])
    assert all(g.isfinite().all() for g in gradients)
    assert gradients[0].norm().isfinite()


@pytest.mark.parametrize("size", [88.0, 1e4, 1e30])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_adversarial_losses_of_logits_of_any_size(size, smoothing):
    logits = torch.tensor([size, -size], requires_grad=True)
    for estimator, expected in ((NonSaturating, [0, size]), (Minimax, [-size, 0])):
        losses = estimator(label_smoothing=smoothing)
        assert losses.generator(logits).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-30)
        # Real images with these logits, generated ones with the opposite: no mistake, and nothing but mistakes.
        value = losses.discriminator(logits, -logits)
        assert value.tolist() == pytest.approx([smoothing * size, (2 - smoothing) * size], rel=1e-6, abs=1e-30)
        (gradient,) = torch.autograd.grad(value.sum() + losses.generator(logits).sum(), logits)
        assert gradient.abs().max() <= 3


@pytest.mark.parametrize("size", [1e4, 1e18])
def test_codes_that_are_read_with_certainty(size):
    """log Q of a right and of a wrong reading; a learned variance has a floor and no ceiling."""
    codes = Codes([2], 1, variance=None)
    right, wrong = torch.tensor([[size, -size, 0.5, -size]]), torch.tensor([[-size, size, 0.5, 80.0]])
    code = torch.tensor([[1.0, 0.0, 0.5]])
    sharp, flat = codes.log_q(right, code), codes.log_q(wrong, code)
    assert sharp["categorical"].item() == 0
    assert flat["categorical"].item() == pytest.approx(-2 * size)
    assert sharp["continuous"].item() == pytest.approx(-0.5 * math.log(2 * math.pi * 1e-3), rel=1e-5)
    assert flat["continuous"].item() == pytest.approx(-0.5 * (80 + math.log(2 * math.pi)), rel=1e-5)


# -- distributions over z ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_variance", [-1000.0, -150.0, -60.0, 0.0, 60.0, 88.0])
@pytest.mark.parametrize("family", ["diagonal", "householder"])
def test_kl_and_samples_of_variances_that_vanish_or_are_huge(family, log_variance):
    mean, value = torch.randn(4, 3), torch.full((4, 3), log_variance, requires_grad=True)
    q = DiagonalNormal(mean, value) if family == "diagonal" else HouseholderNormal(mean, value, torch.randn(2, 4, 3))
    variance = math.exp(log_variance)  # 0 in float64 as well below -745, where log v is all that counts
    exact = 0.5 * (3 * (variance - 1 - log_variance) + mean.double().square().sum(-1))
    kl = kl_divergence(q, StandardNormal(mean))
    torch.testing.assert_close(kl.double(), exact, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(kl.sum(), value)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 0.5 * (variance - 1)), rtol=1e-5, atol=0)
    noise = torch.randn(5, 4, 3)
    z, log_q = q.transform(noise)
    assert z.isfinite().all()
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(noise.double()).sum(-1) - 1.5 * log_variance
    torch.testing.assert_close(log_q.double(), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("length", [0.0, 1e-40, 1e-30, 3e-13, 1e-11, 1e-3, 1e15])
def test_reflections_by_vectors_of_any_length_keep_volume(length):
    direction = torch.nn.functional.normalize(torch.randn(4, 3), dim=-1)
    vectors = (length * direction)[None].requires_grad_()
    q = HouseholderNormal(torch.randn(4, 3), torch.randn(4, 3), vectors)
    z = torch.randn(5, 4, 3)
    reflected = q.reflect(z)
    torch.testing.assert_close(reflected.norm(dim=-1), z.norm(dim=-1), rtol=1e-5, atol=0)  # else log q would be wrong
    expected = z if length < 1e-12 else z - 2 * direction * (z * direction).sum(-1, keepdim=True)
    torch.testing.assert_close(reflected, expected, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad((reflected * torch.randn_like(z)).sum(), vectors)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("condition", [1.0, 1e4, 1e8, 1e12])
def test_a_precision_of_any_condition_knows_the_density_of_its_samples(condition):
    # Rounding of z is magnified by the largest root of the precision: log q is right to eps sqrt(condition).
    d = 8
    basis = torch.linalg.qr(torch.randn(4, d, d, dtype=torch.float64)).Q
    scale = torch.logspace(0, math.log10(condition), d, dtype=torch.float64)
    factor = torch.linalg.cholesky(basis @ torch.diag_embed(scale.expand(4, d)) @ basis.mT).float()
    q = PrecisionNormal(torch.zeros(4, d), factor)
    exact = PrecisionNormal(torch.zeros(4, d, dtype=torch.float64), factor.double())
    z, log_q = q.transform(torch.randn(200, 4, d))
    assert (log_q - exact.log_prob(z.double())).abs().max() < 10 * d * EPS * max(condition**0.5, d)


def saturated(shift: float) -> AutoregressiveFlow:
    """One step whose gate is sigmoid(shift + 3/2) everywhere, with m = 1."""

    class Network(torch.nn.Module):
        backwards = False

        def forward(self, z, context):
            return torch.ones_like(z), torch.full_like(z, shift) + 0 * z

    base = DiagonalNormal(torch.randn(4, 3), torch.zeros(4, 3))
    return AutoregressiveFlow(base, torch.zeros(4, 1), [Network()])


@pytest.mark.parametrize("shift", [-1000.0, -100.0, -50.0, 50.0, 1000.0])
def test_a_flow_whose_gates_are_saturated(shift):
    q, noise = saturated(shift), torch.randn(5, 4, 3)
    z, log_q = q.transform(noise)
    z_0, log_q_0 = q.base.transform(noise)
    torch.testing.assert_close(z, z_0 if shift > 0 else torch.ones_like(z))
    torch.testing.assert_close(log_q, log_q_0 - 3 * min(shift + 1.5, 0.0))
    if shift < -89:  # the way back is lost, and says so
        assert not q.log_prob(z).isfinite().any()


@pytest.mark.parametrize("log_variance", [-40.0, 0.0, 80.0])
@pytest.mark.parametrize("centre", [-1e4, 3.0, 1e4])
@pytest.mark.parametrize("stride", [0.0, 1.0, 1e4])
def test_draws_filters_sum_to_one_wherever_the_window_is(log_variance, centre, stride):
    values = [torch.full((2,), v, requires_grad=True) for v in (centre, stride, log_variance)]
    filters = filterbank(*values, 3, 7)
    torch.testing.assert_close(filters.sum(-1), torch.ones(2, 3))
    gradients = torch.autograd.grad((filters * torch.randn(3, 7)).sum(), values)
    assert all(g.isfinite().all() for g in gradients)
    beyond = filterbank(values[0], values[1], torch.full((2,), -200.0), 3, 7)
    assert beyond.isnan().any()  # never a filter that is none


def test_a_gradient_of_zero_is_clipped_to_zero():
    for gradient in (torch.zeros(2, 3), torch.full((2, 3), 1e-30), torch.full((2, 3), 1e15)):
        gradient.requires_grad_()
        clipped = clip_per_image(gradient)
        assert clipped.norm(dim=-1).max() <= 5 * (1 + 1e-6)
        if gradient.norm() < 1:
            assert torch.equal(clipped, gradient)
        (slope,) = torch.autograd.grad(clipped.square().sum() + clipped.sum(), gradient)
        assert slope.isfinite().all()  # training differentiates through the refinement
