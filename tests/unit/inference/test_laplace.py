"""Laplace inference is exact where the truth is known: linear-Gaussian models, and modes of smooth ones."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from support.models.members import (
    CONTEXTS,
    LIKELIHOODS,
    NETWORKS,
    POSTERIORS,
    Posterior,
    exact_marginal,
    make_data,
    make_model,
    mlp,
)

from vaerun.inference import Laplace
from vaerun.inference.factor import cholesky
from vaerun.inference.laplace import newton_step
from vaerun.models import LatentModel
from vaerun.nets import MLPDecoder

contexts = pytest.mark.parametrize("context", CONTEXTS)
encoders = pytest.mark.parametrize("encoder", [True, False])
LAPLACE = [name for name in POSTERIORS if name.startswith("laplace")]


def laplace(steps: int, damping: str, encoder: bool = True, **options) -> LatentModel:
    return make_model(Posterior(partial(Laplace, steps=steps, damping=damping), encoder=encoder), **options)


@contexts
@encoders
@pytest.mark.parametrize(("d", "b"), [(3, 5), (1, 5), (3, 1), (1, 1)])
@pytest.mark.parametrize("steps", [1, 3])
def test_every_weight_is_the_exact_likelihood(context, encoder, d, b, steps):
    model = laplace(steps, "none", encoder, network="linear", context=context, d=d)
    x, c = make_data(model, b)
    joint = model.joint(x, c)
    z, log_q = model.infer(joint).rsample_with_log_prob((7,))
    exact = exact_marginal(model, c, b).log_prob(x.flatten(1))
    torch.testing.assert_close(joint.log_prob(z) - log_q, exact.expand(7, -1), atol=1e-8, rtol=0)


@contexts
def test_a_damped_posterior_is_not_exact(context):
    # The guard of the test above: its weights must be able to vary.
    model = laplace(1, "paper", network="linear", context=context)
    joint = model.joint(*make_data(model, 5))
    z, log_q = model.infer(joint).rsample_with_log_prob((7,))
    assert ((joint.log_prob(z) - log_q).std(0) > 1e-3).all()


@contexts
@encoders
def test_one_undamped_step_is_as_good_as_ten(context, encoder):
    short, long = (laplace(t, "none", encoder, network="linear", context=context) for t in (1, 10))
    x, c = make_data(short, 5)
    a, b = (m.infer(m.joint(x, c)) for m in (short, long))
    torch.testing.assert_close(a.mean, b.mean)
    torch.testing.assert_close(a.covariance_matrix, b.covariance_matrix)


@contexts
@encoders
@pytest.mark.parametrize(("steps", "rounded"), [(1, 0.5), (2, 0.375), (4, 0.27), (8, 0.20)])
def test_damping_shrinks_the_residual_by_its_product(context, encoder, steps, rounded):
    start, middle, end = (
        laplace(t, damping, encoder, network="linear", context=context)
        for t, damping in ((0, "paper"), (steps, "paper"), (1, "none"))
    )
    x, c = make_data(start, 5)
    mu_0, mu_t, mode = (m.infer(m.joint(x, c)).mean for m in (start, middle, end))
    product = math.prod(1 - 0.5 / (t + 1) for t in range(steps))
    assert product == pytest.approx(rounded, abs=0.005)
    torch.testing.assert_close(mu_t - mode, product * (mu_0 - mode))
    assert (mu_0 - mode).abs().max() > 0.1


@contexts
@encoders
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("network", ["linear", "mlp"])
def test_the_search_ends_where_the_gradient_is_zero(context, encoder, likelihood, network):
    model = laplace(60, "none", encoder, likelihood=likelihood, network=network, context=context)
    joint = model.joint(*make_data(model, 5))
    with torch.no_grad():
        for layer in (model.decoder.affine, *model.decoder.stack.layers):
            layer.weight.mul_(0.3)  # Gauss-Newton converges where the curvature of the decoder is mild
        q = model.infer(joint)
    mode = q.mean.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(joint.log_prob(mode[None]).sum(), mode)
    assert gradient.abs().max() < 1e-8
    if network == "linear":  # there Gauss-Newton is Newton
        for i in range(5):
            hessian = torch.autograd.functional.hessian(
                lambda z, i=i: joint.log_prob(torch.cat([mode[:i], z[None], mode[i + 1 :]])[None])[0, i], mode[i]
            )
            torch.testing.assert_close(q.covariance_matrix[i], torch.linalg.inv(-hessian))


def explicit_step(joint, mu):
    """The same step with a graph through every entry of the precision."""
    local = joint.linearise(mu)
    return torch.linalg.solve(local.precision, local.gradient.unsqueeze(-1)).squeeze(-1)


@contexts
@pytest.mark.parametrize("network", [*NETWORKS, "wide"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(("d", "b"), [(3, 4), (1, 4), (3, 1), (1, 1)])
def test_a_steps_gradient_is_that_through_the_whole_linearisation(context, network, likelihood, d, b):
    parts = mlp([9, 20], "relu") if network == "wide" else network  # wide: more units than pixels
    model = make_model("laplace2", likelihood, parts, context=context, d=d)
    if network == "relu" and isinstance(model.decoder, MLPDecoder):
        with torch.no_grad():
            model.decoder.stack.layers[-1].bias[::2] = -1e3  # dead units
    data, mu = make_data(model, b), torch.randn(b, d, requires_grad=True)
    weights, variables = torch.randn(b, d), [mu, *model.decoder.parameters(), *model.likelihood.parameters()]
    if model.prior_head is not None:
        variables += model.prior_head.parameters()
    steps = [way(model.joint(*data), mu) for way in (newton_step, explicit_step)]
    torch.testing.assert_close(*steps, rtol=1e-9, atol=1e-11)
    actual, expected = (
        torch.autograd.grad((weights * step).sum(), variables, materialize_grads=True) for step in steps
    )
    scale = max(float(gradient.abs().max()) for gradient in expected)
    assert scale > 1e-3
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11 * scale)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_nothing_of_a_steps_linearisation_is_stored(likelihood):
    """Only the search's last linearisation has a graph: what T adds is a few vectors of each image."""
    stored = []
    for steps in (1, 2, 3):
        model = make_model(Posterior(partial(Laplace, steps=steps)), likelihood, mlp([9, 8], "relu"), d=3)
        joint, sizes = model.joint(*make_data(model, 5)), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            model.infer(joint)
        stored.append(sorted(sizes))
    cubes = [[n for n in sizes if n >= 5 * 3 * 8] for sizes in stored]  # [B, d, H] and larger
    assert cubes[0]
    assert [len(c) - len(cubes[0]) for c in cubes] == [0, 0, 0]


@pytest.mark.parametrize("posterior", LAPLACE)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@contexts
def test_precision_is_that_at_the_last_mean(posterior, likelihood, context):
    model = make_model(posterior, likelihood, context=context)
    joint = model.joint(*make_data(model, 4))
    q = model.infer(joint)
    torch.testing.assert_close(q.cholesky @ q.cholesky.mT, joint.linearise(q.mean).precision)


def test_the_search_starts_at_the_encoder_or_at_the_priors_mean():
    model = laplace(0, "paper", context="label_prior")
    x, c = make_data(model, 3)
    expected = model.inference.mean(model.inference.encoder(x - model.mean, c))
    torch.testing.assert_close(model.infer(model.joint(x, c)).mean, expected)
    alone = laplace(0, "paper", encoder=False, context="label_prior")
    torch.testing.assert_close(alone.infer(alone.joint(x, c)).mean, alone.prior(c).mean)
    assert alone.prior(c).mean.abs().max() > 0.1


def test_a_factor_that_does_not_exist_is_nan_in_its_row_alone():
    good = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    factor = cholesky(torch.stack([good, -good, good]))
    assert factor[1].isnan().all()
    torch.testing.assert_close(factor[[0, 2]] @ factor[[0, 2]].mT, good.expand(2, 2, 2))
