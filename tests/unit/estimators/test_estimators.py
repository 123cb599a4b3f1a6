"""Estimators x posteriors: what each reports, against its formula, its neighbours and the exact log-likelihood."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from support.models.members import (
    CONTEXTS,
    ESTIMATORS,
    LIKELIHOODS,
    NETWORKS,
    POSTERIORS,
    exact_marginal,
    has_closed_kl,
    image_noise,
    make_data,
    make_estimator,
    make_model,
)
from torch import Tensor
from torch.distributions import kl_divergence

from vaerun.distributions import DiagonalNormal
from vaerun.errors import InputError
from vaerun.estimators import Estimate, Estimator, dreg, elbo, elbo_mc, iwae, renyi, stl, wake_sleep
from vaerun.estimators import estimate as estimate_with
from vaerun.models import Joint, LatentModel

posteriors = pytest.mark.parametrize("posterior", POSTERIORS)
contexts = pytest.mark.parametrize("context", CONTEXTS)
likelihoods = pytest.mark.parametrize("likelihood", LIKELIHOODS)
PAIRS = [
    (estimator, posterior, context)
    for estimator, method in ESTIMATORS.items()
    for posterior in POSTERIORS
    for context in CONTEXTS
    if not method.closed_kl or has_closed_kl(posterior, context)
]
pairs = pytest.mark.parametrize(("estimator", "posterior", "context"), PAIRS)


def joint_of(model: LatentModel, x: Tensor, c: Tensor | None, rows: list[int] | None = None) -> Joint:
    """The joint of these rows (None: all), each image with its own noise."""
    rows = list(range(len(x))) if rows is None else rows
    return model.joint(x[rows], None if c is None else c[rows], image_noise(model, rows))


def estimate(estimator: str | Estimator, model: LatentModel, joint: Joint, samples: int) -> Estimate:
    chosen = make_estimator(estimator) if isinstance(estimator, str) else estimator
    return estimate_with(chosen, model.infer, joint, samples)


def renyi_bound(log_w: Tensor, alpha: float) -> Tensor:
    """[K, B] -> [B] nats; alpha = 1 the ELBO, alpha = 0 IWAE."""
    if alpha == 1:
        return log_w.mean(0)
    return ((1 - alpha) * log_w).exp().mean(0).log() / (1 - alpha)


@pairs
def test_nothing_is_reduced_over_the_batch(estimator, posterior, context):
    model = make_model(posterior, context=context)
    x, c = make_data(model, 4)
    full = estimate(estimator, model, joint_of(model, x, c), 3)
    part = estimate(estimator, model, joint_of(model, x, c, [2, 0]), 3)
    assert full.bound.shape == full.surrogate.shape == (4,)
    assert part.terms.keys() == full.terms.keys() == {"reconstruction", "kl"}
    torch.testing.assert_close(part.bound, full.bound[[2, 0]])
    torch.testing.assert_close(part.surrogate, full.surrogate[[2, 0]])
    for name, value in full.terms.items():
        assert value.shape == (4,)
        torch.testing.assert_close(part.terms[name], value[[2, 0]])


@pairs
@likelihoods
def test_the_bound_is_its_formula(estimator, posterior, context, likelihood):
    # Spelled out with densities evaluated anew at the samples.
    model, method = make_model(posterior, likelihood, context=context), ESTIMATORS[estimator]
    joint = joint_of(model, *make_data(model, 3))
    q = model.infer(joint)
    z, _ = q.transform(joint.noise("posterior", 4))
    log_p, log_prior, log_q = (
        joint.likelihood.log_prob(joint.x, joint.decode(z)),
        joint.prior.log_prob(z),
        q.log_prob(z),
    )
    kl = kl_divergence(q, joint.prior) if method.closed_kl else (log_q - log_prior).mean(0)
    bound = log_p.mean(0) - kl if method.closed_kl else renyi_bound(log_p + log_prior - log_q, method.alpha)
    result = estimate(estimator, model, joint, 4)
    torch.testing.assert_close(result.bound, bound)
    torch.testing.assert_close(result.terms, {"reconstruction": log_p.mean(0), "kl": kl})
    assert result.name == method.name
    if method.derivative:
        torch.testing.assert_close(result.surrogate, bound)


DERIVATIVES = [
    (*pair, network)
    for pair in PAIRS
    if ESTIMATORS[pair[0]].derivative
    for network in NETWORKS
    if network != "relu"  # it has kinks
    and (pair[0] in ("elbo", "elbo_mc") or network == "mlp")  # whether inference is differentiated, two of them tell
]


@pytest.mark.parametrize(("estimator", "posterior", "context", "network"), DERIVATIVES)
@likelihoods
def test_the_gradient_is_the_derivative_of_the_bound(estimator, posterior, context, network, likelihood):
    # At fixed noise, along a random direction through all parameters: whatever inference holds back would show.
    model = make_model(posterior, likelihood, network, context)
    x, c = make_data(model, 2)
    parameters = list(model.parameters())
    direction = [torch.randn_like(p) for p in parameters]

    def value() -> Tensor:
        return (estimate(estimator, model, joint_of(model, x, c), 2).surrogate * torch.tensor([1.0, -0.7])).sum()

    def move(distance: float) -> None:
        with torch.no_grad():
            for p, v in zip(parameters, direction, strict=True):
                p.add_(v, alpha=distance)

    gradients = torch.autograd.grad(value(), parameters, materialize_grads=True)
    slope = sum((g * v).sum() for g, v in zip(gradients, direction, strict=True))
    result, h = [], 1e-6
    for distance in (h, -2 * h):
        move(distance)
        result.append(value().detach())
    torch.testing.assert_close(slope, (result[0] - result[1]) / (2 * h), rtol=1e-5, atol=1e-5)
    assert slope.abs() > 1e-2


SAME = {
    "iwae, K=1": (iwae, elbo_mc, 1),
    "dreg, K=1": (dreg, stl, 1),
    "renyi, alpha=0": (partial(renyi, alpha=0.0), iwae, 5),
    "renyi, alpha=3, K=1": (partial(renyi, alpha=3.0), elbo_mc, 1),
    "renyi, alpha=-2, K=1": (partial(renyi, alpha=-2.0), elbo_mc, 1),
}


@pytest.mark.parametrize("case", SAME)
@posteriors
@contexts
def test_the_same_bound_and_gradient_at_the_same_noise(case, posterior, context):
    first, second, samples = SAME[case]
    model = make_model(posterior, context=context)
    x, c = make_data(model, 3)
    parameters, weights = list(model.parameters()), torch.tensor([1.0, -0.7, 0.4])
    results = [estimate(e, model, joint_of(model, x, c), samples) for e in (first, second)]
    torch.testing.assert_close(results[0].bound, results[1].bound, rtol=1e-12, atol=0)
    a, b = (torch.autograd.grad((f.surrogate * weights).sum(), parameters, materialize_grads=True) for f in results)
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    assert max(g.abs().max() for g in a) > 1e-2


@posteriors
@contexts
def test_bounds_are_ordered_at_the_same_samples(posterior, context):
    # Power means: the Renyi bound falls with alpha, for every set of samples; its slope at alpha = 1 is -1/2 the
    # variance of log w.
    model = make_model(posterior, context=context)
    joint = joint_of(model, *make_data(model, 3))
    with torch.no_grad():
        results = [
            estimate(partial(renyi, alpha=alpha), model, joint, 6).bound
            for alpha in (-5.0, -1.0, 0.0, 0.5, 0.99, 1.01, 2.0, 30.0)
        ]
        middle = estimate(elbo_mc, model, joint, 6).bound
        assert (torch.stack([*results[:5], middle, *results[5:]]).diff(dim=0) < 0).all()
        h = 1e-4
        low, high = (estimate(partial(renyi, alpha=1 + s), model, joint, 6).bound for s in (h, -h))
        q = model.infer(joint)
        z, log_q = q.transform(joint.noise("posterior", 6))
        variance = (joint.log_prob(z) - log_q).var(0, correction=0)
        torch.testing.assert_close((high + low) / 2, middle, rtol=0, atol=1e-4)
        torch.testing.assert_close((high - low) / (2 * h), variance / 2, rtol=1e-3, atol=1e-6)


@posteriors
@contexts
def test_more_samples_tighten_the_bound(posterior, context):
    # Of the same 16 samples: the mean of L_K over disjoint groups of K can only rise with K (Jensen), so that in
    # expectation it does as well.
    model = make_model(posterior, context=context)
    x, c = make_data(model, 3)
    noise = image_noise(model, [0, 1, 2])

    def group(first: int, k: int) -> Tensor:
        def part(stream: str, n: int) -> Tensor:
            return noise(stream, 16)[first : first + k] if stream == "posterior" else noise(stream, n)

        return estimate(iwae, model, model.joint(x, c, part), k).bound

    with torch.no_grad():
        means = [torch.stack([group(first, k) for first in range(0, 16, k)]).mean(0) for k in (1, 2, 4, 8, 16)]
        everything = [estimate(e, model, joint_of(model, x, c), 16).bound for e in (elbo_mc, wake_sleep)]
    assert (torch.stack(means).diff(dim=0) > 0).all()
    torch.testing.assert_close([means[0], means[-1]], everything)


@posteriors
@contexts
@pytest.mark.parametrize("samples", [2, 20])
def test_bounds_are_below_the_exact_likelihood(posterior, context, samples):
    model = make_model(posterior, "gaussian", "linear", context)
    x, c = make_data(model, 4)
    exact = exact_marginal(model, c, 4).log_prob(x.flatten(1)).detach()
    rounds = 300
    torch.manual_seed(0)
    joint = model.joint(x.repeat(rounds, 1, 1, 1), None if c is None else c.repeat(rounds, 1))
    noise = {"posterior": torch.randn(samples, 4 * rounds, 3)}
    joint.noise = lambda stream, k: noise.setdefault(stream, torch.randn(k, 4 * rounds, 3))  # the same for all

    def bounds(estimator: Estimator) -> Tensor:
        return estimate(estimator, model, joint, samples).bound.view(rounds, 4)

    def check_below(low: Tensor, high: Tensor) -> None:
        """In expectation; paired, so that what both share costs no precision."""
        gap = high - low
        error = gap.std(0) / math.sqrt(rounds)
        assert (gap.mean(0) > -5 * error - 1e-9).all()
        if posterior == "laplace2_undamped":  # the exact posterior: log w = log p(x)
            torch.testing.assert_close(low, high.expand_as(low), atol=1e-8, rtol=0)
        else:
            assert (gap.mean(0) > 1e-4).all()

    with torch.no_grad():
        single, half, several = (bounds(e) for e in (elbo_mc, partial(renyi, alpha=0.5), iwae))
        check_below(single, half)
        check_below(half, several)
        check_below(several, exact)
        if has_closed_kl(posterior, context):
            gap = bounds(elbo) - single
            assert (gap.mean(0).abs() < 5 * gap.std(0) / math.sqrt(rounds)).all()


# -- refused ----------------------------------------------------------------------------------------------------------


@posteriors
@contexts
def test_no_closed_form_is_refused(posterior, context):
    model = make_model(posterior, context=context)
    joint = model.joint(*make_data(model, 2))
    q = model.infer(joint)
    assert elbo_mc(joint, q, 1).bound.isfinite().all()
    if has_closed_kl(posterior, context):
        assert elbo(joint, q, 1).bound.isfinite().all()
        return
    with pytest.raises(InputError, match="estimator=elbo_mc"):
        elbo(joint, q, 1)


class Drawn(DiagonalNormal):
    """Samples that are no function of its parameters, as a discrete variable's are."""

    has_rsample = False


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_posterior_without_reparameterisation(estimator):
    model = make_model("amortised")
    joint = model.joint(*make_data(model, 2))
    q = model.infer(joint)
    q = Drawn(q.mean, q.log_variance)
    if not ESTIMATORS[estimator].path:
        assert make_estimator(estimator)(joint, q, 2).bound.isfinite().all()
        return
    with pytest.raises(InputError, match="estimator=score_function") as refusal:
        make_estimator(estimator)(joint, q, 2)
    assert "\n" not in str(refusal.value)
    assert "Drawn" in str(refusal.value)


@pytest.mark.parametrize("alpha", [1.0, 1, math.nan, math.inf, -math.inf])
def test_a_renyi_order_without_a_bound_is_refused(alpha):
    model = make_model("amortised")
    joint = model.joint(*make_data(model, 2))
    with pytest.raises(InputError, match="alpha=1.*elbo_mc" if alpha == 1 else f"estimator.alpha.*finite.*{alpha}"):
        renyi(joint, model.infer(joint), 3, alpha=alpha)


def test_every_order_below_zero_says_that_it_is_no_bound():
    model = make_model("amortised")
    joint = joint_of(model, *make_data(model, 2))
    for alpha, name in ((-1e-9, "renyi_no_lower_bound"), (0.0, "renyi"), (0.5, "renyi"), (7.0, "renyi")):
        assert estimate(partial(renyi, alpha=alpha), model, joint, 2).name == name
