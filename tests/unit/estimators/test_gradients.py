"""The mean of every estimator's gradient, against the exact gradient of its bound: estimators x posteriors x contexts.

By quadrature over the samples' noise (quadrature.py), in every parameter: the exact gradient on linear-Gaussian models,
that of the bound's own derivative on small networks. Monte Carlo covers models that quadrature does not resolve.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from support.models.members import (
    CONTEXTS,
    ESTIMATORS,
    LIKELIHOODS,
    POSTERIORS,
    Network,
    Posterior,
    exact_marginal,
    has_closed_kl,
    image_noise,
    make_data,
    make_estimator,
    make_model,
)
from support.models.quadrature import D, Gradient, NodeNoise, by_part, check, distance, mean_gradient, smooth_model
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from vaerun.distributions import DiagonalNormal, LatentDistribution
from vaerun.estimators import Estimate, Estimator, ScoreFunction, dreg, elbo, elbo_mc, estimate, iwae, stl
from vaerun.estimators.base import detached_samples, reparameterised_terms
from vaerun.inference import Recurrent
from vaerun.models import Joint, LatentModel
from vaerun.nets import DrawDecoder, DrawEncoder

posteriors = pytest.mark.parametrize("posterior", POSTERIORS)
contexts = pytest.mark.parametrize("context", CONTEXTS)


# -- linear-Gaussian: the exact gradient is known ---------------------------------------------------------------------


def exact_elbo(joint: Joint, q) -> Tensor:
    """E_q log p(x | z) - KL(q || p) of a linear decoder without quadrature, [B] nats, differentiable."""
    full = MultivariateNormal(q.mean, q.covariance_matrix)
    prior = MultivariateNormal(joint.prior.mean, torch.diag_embed(joint.prior.variance))
    w = joint.decoder.affine.weight[:, :D]
    spread = torch.einsum("ij,bjk,ik->b", w, full.covariance_matrix, w)
    at_mean = joint.likelihood.log_prob(joint.x, joint.decode(q.mean))
    return at_mean - 0.5 * spread / joint.likelihood.log_variance.exp() - kl_divergence(full, prior)


ELBO = [name for name, method in ESTIMATORS.items() if method.alpha == 1]


@posteriors
@contexts
def test_elbo_gradients_are_exact_on_linear_gaussian_models(posterior, context):
    model, c = smooth_model(posterior, context=context, network="linear")
    joint = model.joint(make_data(model, 1)[0], c, NodeNoise(torch.zeros(1, 1, D)))
    q = model.infer(joint)
    if q.exact_moments:
        truth, nodes, tolerance = by_part(model, exact_elbo(joint, q).sum()), {1: 5, 2: 4}, 1e-9
    else:  # log w is no polynomial of the noise
        truth, nodes, tolerance = mean_gradient(model, elbo_mc, 1, 40, c), {1: 24, 2: 10}, 1e-3
    for name in ELBO:
        method = ESTIMATORS[name]
        if not method.closed_kl or has_closed_kl(posterior, context):
            check(
                mean_gradient(model, make_estimator(name), method.minimum_samples, nodes[method.minimum_samples], c),
                truth,
                tolerance,
            )


# -- a small network: the gradient of the bound by quadrature of its own derivative -----------------------------------

PRECISION = {1: 2e-3, 2: 1e-2}
"""Relative error of the quadrature, by K."""


def truth_of(model: LatentModel, c: Tensor | None, bound: str) -> Gradient:
    return mean_gradient(model, elbo_mc, 1, 24, c) if bound == "elbo" else mean_gradient(model, iwae, 2, 10, c)


@posteriors
@contexts
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_elbo_gradients_agree_on_a_network(posterior, context, likelihood):
    model, c = smooth_model(posterior, likelihood, context)
    truth = truth_of(model, c, "elbo")
    for name in ELBO:
        method = ESTIMATORS[name]
        if method.minimum_samples == 1 and (not method.closed_kl or has_closed_kl(posterior, context)):
            check(mean_gradient(model, make_estimator(name), 1, 24, c), truth, PRECISION[1])


@posteriors
@contexts
@pytest.mark.parametrize("network", ["linear", "mlp"])
def test_gradients_of_two_samples_agree(posterior, context, network):
    model, c = smooth_model(posterior, context=context, network=network)
    check(mean_gradient(model, dreg, 2, 10, c), truth_of(model, c, "iwae"), PRECISION[2])
    check(mean_gradient(model, ScoreFunction(), 2, 10, c), truth_of(model, c, "elbo"), PRECISION[2])


RECURRENT = Posterior(partial(Recurrent, steps=2))
"""DRAW: the decoder runs inside q."""
READ_AND_WRITE = Network(
    (1, 3, 4),
    partial(DrawEncoder, hidden=5, decoder_hidden=4, read_size=None),
    partial(DrawDecoder, steps=2, hidden=4, write_size=None),
)


@contexts
def test_gradients_of_a_recurrent_posterior_agree(context):
    model, c = smooth_model(RECURRENT, context=context, network=READ_AND_WRITE)
    truth = truth_of(model, c, "elbo")
    for name in ("stl", "score_none", "score_mean"):
        check(mean_gradient(model, make_estimator(name), 1, 24, c), truth, 1e-4)
    check(mean_gradient(model, ScoreFunction(), 2, 10, c), truth, 1e-4)
    check(mean_gradient(model, dreg, 2, 10, c), truth_of(model, c, "iwae"), 1e-4)
    if context == "plain":  # the guard: what the decoder does to q does count
        assert distance(mean_gradient(model, score(detach_joint=True), 1, 24, c), truth)["p"] > 1e-3


def surrogate(function: Callable[[Joint, LatentDistribution, int], Tensor], **attributes: bool) -> Estimator:
    def estimator(joint: Joint, q: LatentDistribution, samples: int) -> Estimate:
        result = function(joint, q, samples)
        return Estimate(result, result, {})

    estimator.__dict__.update(attributes)
    return estimator


def score(
    baseline: Callable[[Tensor], Tensor] = torch.zeros_like, weight: float = 1.0, **attributes: bool
) -> Estimator:
    def function(joint: Joint, q: LatentDistribution, samples: int) -> Tensor:
        draw = detached_samples(joint, q, samples)
        signal = draw.log_w.detach()
        return (draw.log_p + weight * draw.log_q * (signal - baseline(signal))).mean(0)

    return surrogate(function, **attributes)


def weighted_path(power: int) -> Estimator:
    """DReG with the wrong power of the weights on the path through z."""

    def function(joint: Joint, q: LatentDistribution, samples: int) -> Tensor:
        draw = reparameterised_terms(joint, q, samples, detach_q=True)
        weights = torch.softmax(draw.log_w.detach(), 0)
        draw.z.register_hook(lambda g: g * weights.unsqueeze(-1) ** (power - 1))
        return (weights * draw.log_w).sum(0)

    return surrogate(function)


BROKEN = {
    "half the score": ("elbo", 1, score(weight=0.5)),
    "a baseline that knows its own sample": ("elbo", 2, score(lambda signal: signal.mean(0))),
    "no score of what the decoder does to q": ("elbo", 1, score(detach_joint=True)),
    "no path": ("elbo", 1, surrogate(lambda joint, q, k: detached_samples(joint, q, k).log_w.mean(0))),
    "no gradient of the model's own": ("elbo", 1, surrogate(lambda joint, q, k: stl(joint.detach(), q, k).surrogate)),
    "no entropy": ("elbo", 1, surrogate(lambda joint, q, k: reparameterised_terms(joint, q, k).log_p.mean(0))),
    "weights to the power 1": ("iwae", 2, weighted_path(1)),
    "weights to the power 3": ("iwae", 2, weighted_path(3)),
    "weights held": ("iwae", 2, surrogate(lambda joint, q, k: elbo_mc(joint, q, k).surrogate)),
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("posterior", ["full", "householder3", "iaf2", "semi2", "laplace2"])
def test_a_broken_estimator_is_seen(fault, posterior):
    bound, samples, broken = BROKEN[fault]
    model, c = smooth_model(posterior)
    result = mean_gradient(model, broken, samples, {1: 24, 2: 10}[samples], c)
    error = max(distance(result, truth_of(model, c, bound)).values())
    if fault.endswith("does to q") and posterior not in ("semi2", "laplace2"):
        assert error < PRECISION[samples]  # there q does not depend on the decoder
    else:
        assert error > 3 * PRECISION[samples]


# -- sample by sample -------------------------------------------------------------------------------------------------


@posteriors
@contexts
@pytest.mark.parametrize("estimator", ["stl", "dreg"])
def test_held_gradients_are_the_published_sums(estimator, posterior, context):
    # STL: 1/K sum_k (dlogw/dz dz/dphi + dlogp/dtheta); DReG: sum_k (v_k^2 dlogw/dz dz/dphi + v_k dlogp/dtheta).
    model = make_model(posterior, context=context)
    x, c = make_data(model, 3)

    def fresh() -> tuple[Joint, LatentDistribution]:
        joint = model.joint(x, c, image_noise(model, [0, 1, 2]))
        return joint, model.infer(joint)

    joint, q = fresh()
    z, _ = q.transform(joint.noise("posterior", 4))
    at = z.detach().requires_grad_()
    log_w = joint.detach().log_prob(at) - q.detach().log_prob(at)
    slope = torch.autograd.grad(log_w.sum(), at)[0]
    v = torch.full_like(log_w, 0.25) if estimator == "stl" else torch.softmax(log_w.detach(), 0)
    on_path = v if estimator == "stl" else v.square()
    expected = by_part(model, (z * slope * on_path.unsqueeze(-1)).sum() + (v * joint.log_prob(z.detach())).sum())
    actual = by_part(model, make_estimator(estimator)(*fresh(), 4).surrogate.sum())
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)


class Particles(DiagonalNormal):
    """A distribution whose samples are a parameter."""

    def __init__(self, particles: Tensor) -> None:
        super().__init__(torch.zeros_like(particles[0]), torch.zeros_like(particles[0]))
        self.particles = particles

    def transform(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self.particles, self.log_prob(self.particles)


def test_dreg_leaves_nothing_behind_on_a_sample():
    model = make_model("amortised")
    joint = model.joint(*make_data(model, 3))
    particles = torch.randn(4, 3, 3).requires_grad_()
    first, second = (
        torch.autograd.grad(dreg(joint, Particles(particles), 4).surrogate.sum(), particles)[0] for _ in "12"
    )
    torch.testing.assert_close(first, second)
    log_w = joint.log_prob(particles) - Particles(particles).log_prob(particles)
    slope = torch.autograd.grad(log_w.sum(), particles)[0]
    torch.testing.assert_close(first, torch.softmax(log_w.detach(), 0).square().unsqueeze(-1) * slope)


@contexts
def test_sticking_the_landing(context):
    # At the exact posterior log w is the same for every z: what comes by the path is zero, sample by sample, and the
    # score is all that is left of the others' gradients.
    model = make_model("laplace2_undamped", network="linear", context=context)
    joint = model.joint(*make_data(model, 4))
    leaves, build = model.infer(joint).local_parameters()
    for samples in (1, 5):
        size = {}
        for estimator in (stl, dreg, elbo, elbo_mc, iwae):
            value = estimator(joint, build(), samples).surrogate.sum()
            size[estimator] = max(float(g.abs().max()) for g in torch.autograd.grad(value, leaves))
        assert max(size[stl], size[dreg]) < 1e-8
        assert min(size[elbo], size[elbo_mc], size[iwae]) > 0.1


@contexts
def test_a_posterior_that_stays_exact_has_no_variance(context):
    # An undamped step makes q exact whatever the decoder is, so that log w = log p(x) as a function of all parameters:
    # here elbo_mc's whole gradient is that of log p(x), in every sample, and STL's is so in the mean alone.
    model, c = smooth_model("laplace2_undamped", context=context, network="linear")
    x, spread = make_data(model, 1)[0], {}
    exact = by_part(model, exact_marginal(model, c, 1).log_prob(x.flatten(1)).sum())
    for estimator in (elbo_mc, stl):
        results = [
            by_part(model, estimate(estimator, model.infer, model.joint(x, c), 1).surrogate.sum()) for _ in range(5)
        ]
        spread[estimator] = max(distance(f, exact)["p"] for f in results)
    assert spread[elbo_mc] < 1e-9
    assert spread[stl] > 0.1
    check(mean_gradient(model, stl, 1, 5, c), exact, 1e-9)


# -- models that quadrature does not resolve: Monte Carlo -------------------------------------------------------------


@pytest.mark.slow
@posteriors
@contexts
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_gradients_agree_by_monte_carlo(posterior, context, likelihood):
    # Paired by common noise; three random directions through each part of the model; five standard errors.
    model = make_model(posterior, likelihood, context=context)
    x, c = make_data(model, 2)
    x, c = x.repeat(16, 1, 1, 1), None if c is None else c.repeat(16, 1)
    directions: dict[str, Tensor] = {}
    reference = {"elbo": "elbo_mc", "iwae": "iwae"}
    compared = [n for n, m in ESTIMATORS.items() if m.unbiased and m.name in reference and n not in ("elbo_mc", "iwae")]

    @cache
    def projected(name: str, seed: int) -> Tensor:
        torch.manual_seed(seed)
        result = estimate(make_estimator(name), model.infer, model.joint(x, c), 5)
        parts = by_part(model, result.surrogate.mean())
        for part, g in parts.items():
            directions.setdefault(part, torch.randn(3, len(g), generator=torch.Generator().manual_seed(len(g))))
        return torch.cat([directions[part] @ g for part, g in parts.items()])

    for name in compared:
        if ESTIMATORS[name].closed_kl and not has_closed_kl(posterior, context):
            continue
        base = reference[ESTIMATORS[name].name]
        gaps = torch.stack([projected(name, seed) - projected(base, seed) for seed in range(64)])
        assert (gaps.mean(0).abs() <= 5 * gaps.std(0) / 8 + 1e-9).all(), name
