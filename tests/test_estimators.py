"""Estimators x posteriors: bounds of the exact log-likelihood, equal in the mean, with the right gradients."""

from __future__ import annotations

import pytest
import torch
from members import (
    CONTEXTS,
    ESTIMATORS,
    LIKELIHOODS,
    NETWORKS,
    POSTERIORS,
    exact_marginal,
    has_closed_kl,
    image_noise,
    make_data,
    make_model,
)
from torch import Tensor

from vaerun.errors import InputError
from vaerun.estimators import Estimate, elbo, elbo_mc
from vaerun.models import LatentModel

contexts = pytest.mark.parametrize("context", CONTEXTS)
PAIRS = [
    (estimator, posterior, context)
    for estimator, method in ESTIMATORS.items()
    for posterior in POSTERIORS
    for context in CONTEXTS
    if not method.closed_kl or has_closed_kl(posterior, context)
]
pairs = pytest.mark.parametrize(("estimator", "posterior", "context"), PAIRS)
PATHWISE = [name for name, method in ESTIMATORS.items() if method.pathwise]


def estimate(estimator: str, model: LatentModel, x: Tensor, c: Tensor | None, samples: int, rows=None) -> Estimate:
    """With the noise of these rows; rows=None: all, from the global generator."""
    noise = None if rows is None else image_noise(model, rows)
    if rows is not None:
        x, c = x[rows], None if c is None else c[rows]
    joint = model.joint(x, c, noise)
    return ESTIMATORS[estimator].function(joint, model.infer(joint), samples)


@pairs
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("samples", [1, 5])
def test_nothing_is_reduced_over_the_batch(estimator, posterior, context, likelihood, samples):
    model = make_model(posterior, likelihood, context=context)
    x, c = make_data(model, 4)
    whole = estimate(estimator, model, x, c, samples, [0, 1, 2, 3])
    assert whole.bound.shape == whole.surrogate.shape == (4,)
    torch.testing.assert_close(whole.bound, whole.terms["reconstruction"] - whole.terms["kl"])
    part = estimate(estimator, model, x, c, samples, [2, 0])
    torch.testing.assert_close(part.bound, whole.bound[[2, 0]])
    torch.testing.assert_close(part.surrogate, whole.surrogate[[2, 0]])
    for name, value in whole.terms.items():
        assert value.shape == (4,)
        torch.testing.assert_close(part.terms[name], value[[2, 0]])


@pairs
def test_a_bound_is_the_mean_over_its_samples(estimator, posterior, context):
    model = make_model(posterior, context=context)
    x, c = make_data(model, 3)
    noise = image_noise(model, [0, 1, 2])

    def only(k: int):
        return lambda stream, n: noise(stream, 5)[k : k + 1] if stream == "posterior" else noise(stream, n)

    def bound(source, samples: int) -> Tensor:
        joint = model.joint(x, c, source)
        return ESTIMATORS[estimator].function(joint, model.infer(joint), samples).bound

    singles = torch.stack([bound(only(k), 1) for k in range(5)])
    torch.testing.assert_close(bound(noise, 5), singles.mean(0))
    assert (singles.std(0) > 1e-6).all()


@pytest.mark.parametrize("posterior", POSTERIORS)
@contexts
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_elbo_mc_is_the_mean_log_weight(posterior, context, likelihood):
    # Spelled out with densities evaluated anew at the samples.
    model = make_model(posterior, likelihood, context=context)
    joint = model.joint(*make_data(model, 3), image_noise(model, [0, 1, 2]))
    q = model.infer(joint)
    z, _ = q.transform(joint.noise("posterior", 4))
    direct = joint.likelihood.log_prob(joint.x, joint.decode(z)) + joint.prior.log_prob(z) - q.log_prob(z)
    torch.testing.assert_close(elbo_mc(joint, q, 4).bound, direct.mean(0))


@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "relu"])  # it has kinks
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(("estimator", "posterior", "context"), [p for p in PAIRS if p[0] in PATHWISE])
def test_the_gradient_is_the_derivative_of_the_bound(estimator, posterior, context, network, likelihood):
    # At fixed noise, along a random direction through all parameters: whatever inference holds back would show.
    model = make_model(posterior, likelihood, network, context)
    x, c = make_data(model, 2)
    parameters = list(model.parameters())
    direction = [torch.randn_like(p) for p in parameters]

    def value() -> Tensor:
        return (estimate(estimator, model, x, c, 2, [0, 1]).surrogate * torch.tensor([1.0, -0.7])).sum()

    def move(distance: float) -> None:
        with torch.no_grad():
            for p, v in zip(parameters, direction, strict=True):
                p.add_(v, alpha=distance)

    gradients = torch.autograd.grad(value(), parameters, materialize_grads=True)
    slope = sum((g * v).sum() for g, v in zip(gradients, direction, strict=True))
    found, h = [], 1e-6
    for distance in (h, -2 * h):
        move(distance)
        found.append(value().detach())
    torch.testing.assert_close(slope, (found[0] - found[1]) / (2 * h), rtol=1e-5, atol=1e-5)
    assert slope.abs() > 1e-2


def paired_difference(model: LatentModel, x: Tensor, c: Tensor | None, rounds: int, samples: int) -> Tensor:
    """elbo - elbo_mc and the difference of their gradients, with the same noise: [rounds, 2 + parameters]."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    differences = []
    for seed in range(rounds):
        values = []
        for name in ("elbo", "elbo_mc"):
            torch.manual_seed(seed)
            bound = estimate(name, model, x, c, samples).bound
            gradients = torch.autograd.grad(bound.sum(), parameters, materialize_grads=True)
            values.append(torch.cat([bound.detach(), *(g.flatten() for g in gradients)]))
        differences.append(values[0] - values[1])
    return torch.stack(differences)


@pytest.mark.parametrize("network", ["linear", "mlp"])
@pytest.mark.parametrize(("posterior", "context"), [p[1:] for p in PAIRS if p[0] == "elbo" and p[2] != "label"])
def test_estimators_agree_in_the_mean_with_their_gradients(posterior, network, context):
    model = make_model(posterior, "gaussian", network, context)
    differences = paired_difference(model, *make_data(model, 2), rounds=40, samples=50)
    error = differences.std(0) / len(differences) ** 0.5
    assert (differences.mean(0).abs() <= 5 * error + 1e-9).all()
    assert (error[:2] > 0).all()


@pairs
def test_a_bound_is_below_the_exact_likelihood(estimator, posterior, context):
    model = make_model(posterior, "gaussian", "linear", context)
    x, c = make_data(model, 4)
    exact = exact_marginal(model, c, 4).log_prob(x.flatten(1))
    with torch.no_grad():
        bounds = torch.stack([estimate(estimator, model, x, c, 20).bound for _ in range(50)])
    error = bounds.std(0) / len(bounds) ** 0.5
    assert (bounds.mean(0) <= exact + 5 * error + 1e-9).all()
    if posterior == "laplace2_undamped":  # the exact posterior
        assert ((bounds.mean(0) - exact).abs() <= 5 * error + 1e-9).all()
        if estimator == "elbo_mc":
            torch.testing.assert_close(bounds, exact.expand_as(bounds), atol=1e-9, rtol=0)
    else:
        assert (bounds.mean(0) < exact - 1e-3).all()


@pytest.mark.parametrize("posterior", POSTERIORS)
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
