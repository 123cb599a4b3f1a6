"""The posteriors vae_iaf and vae_full: what is read off the encoder, what is refused, and that they weigh right."""

from __future__ import annotations

import pytest
import torch
from support.models.members import Posterior, image_noise, make_data, make_model
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from vaerun.distributions import DiagonalNormal, StandardNormal
from vaerun.errors import InputError
from vaerun.estimators import elbo, elbo_mc
from vaerun.evaluation import log_likelihood
from vaerun.inference import FullCovariance, InverseAutoregressive
from vaerun.inference.autoregressive import ELU
from vaerun.models.ppca import exact_log_likelihood

# -- inverse autoregressive ------------------------------------------------------------------------------------------


def test_what_is_not_known_in_closed_form_is_refused():
    model = make_model("iaf2")
    joint = model.joint(*make_data(model, 2))
    q = model.infer(joint)
    assert not q.exact_moments
    for name in ("mean", "variance"):
        with pytest.raises(NotImplementedError):
            getattr(q, name)
    for prior in (StandardNormal(torch.zeros(2, 3)), DiagonalNormal(torch.zeros(2, 3), torch.zeros(2, 3))):
        with pytest.raises(NotImplementedError):
            kl_divergence(q, prior)
    with pytest.raises(InputError, match="estimator=elbo_mc"):
        elbo(joint, q, 1)
    assert elbo_mc(joint, q, 1).bound.isfinite().all()


@pytest.mark.parametrize("name", ["iaf2", "full"])
def test_a_wrong_posterior_reaches_the_exact_likelihood(name):
    model = make_model(name, network="linear", d=2)
    with torch.no_grad():
        model.likelihood.log_variance.fill_(2.0)  # the exact posterior is then near the prior ...
        model.inference.base.log_variance.bias.fill_(0.5)  # ... and this one wider
    x, _ = make_data(model, 6)
    exact, result = exact_log_likelihood(model, x), log_likelihood(model, x, samples=20_000)
    torch.testing.assert_close(result, exact, atol=0.03, rtol=0)
    assert (result - exact).abs().max() > 1e-6


def test_parts_of_the_posterior_are_read_off_the_encoder():
    model = make_model("iaf2", context="label")
    x, c = make_data(model, 4)
    q, inference = model.infer(model.joint(x, c)), model.inference
    features = inference.base.encoder(x - model.mean, c)
    torch.testing.assert_close(q.base.mean, inference.base.mean(features))
    torch.testing.assert_close(q.base.variance, inference.base.log_variance(features).exp())
    torch.testing.assert_close(q.context, inference.context(features))
    assert q.context.shape == (4, 4)
    gradients = torch.autograd.grad(q.context.sum(), [*inference.base.encoder.parameters()])
    assert all(g.abs().max() > 1e-3 for g in gradients)
    assert q.networks == tuple(inference.networks)
    assert InverseAutoregressive(inference.base.encoder, 3, steps=1).context.out_features == features.shape[1]
    noise = image_noise(model, range(4))("posterior", 2)
    assert not torch.allclose(q.transform(noise)[0], q.base.transform(noise)[0])


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": [2]},
        {"hidden": [8, 2]},
        {"hidden": 8},
        {"hidden": [8.0]},
        {"context": 0},
        {"context": True},
        {"context": 2.5},
    ],
)
def test_senseless_options_are_refused(options):
    encoder = make_model().inference.encoder
    with pytest.raises(InputError, match=rf"model\.inference\.{next(iter(options))}"):
        InverseAutoregressive(encoder, 3, steps=1, **options)


# -- full covariance --------------------------------------------------------------------------------------------------


def random_full(d: int) -> tuple[nn.Module, Tensor]:
    model = make_model("full", d=d)
    if model.inference.lower is not None:
        nn.init.normal_(model.inference.lower.weight)
    return model, make_data(model, 4)[0]


@pytest.mark.parametrize("d", [1, 2, 4])
def test_the_factor_is_spelled_out(d):
    model, x = random_full(d)
    q, part = model.infer(model.joint(x)), model.inference
    h = part.base.encoder(x - model.mean, None)
    mean, deviation = part.base.mean(h), (part.base.log_variance(h) / 2).exp()
    for b in range(4):
        factor, k = torch.eye(d), 0
        for i in range(d):
            for j in range(i):
                factor[i, j] = part.lower(h)[b, k]
                k += 1
        factor = factor / deviation[b]  # column j in units of the diagonal's j-th
        truth = MultivariateNormal(mean[b], precision_matrix=factor @ factor.mT)
        torch.testing.assert_close(q.covariance_matrix[b], truth.covariance_matrix)
        torch.testing.assert_close(q.mean[b], truth.mean)
        z = torch.randn(5, 4, d)
        torch.testing.assert_close(q.log_prob(z)[:, b], truth.log_prob(z[:, b]))
    assert (q.covariance_matrix[0] - q.covariance_matrix[1]).abs().max() > 1e-3


def test_full_covariance_starts_as_the_diagonal_gaussian():
    model = make_model("full", randomise=False)
    x, _ = make_data(model, 4)
    joint = model.joint(x)
    _, mean, log_variance = model.inference.base.parameters_of(joint)
    q, diagonal = model.infer(joint), DiagonalNormal(mean, log_variance)
    torch.testing.assert_close(q.mean, diagonal.mean)
    torch.testing.assert_close(q.covariance_matrix, diagonal.covariance_matrix)
    elbo(joint, q, 1).surrogate.sum().backward()
    assert model.inference.lower.weight.grad.abs().max() > 1e-3  # and does not stay there


def test_both_need_an_encoder():
    for make in (FullCovariance, lambda encoder, d: InverseAutoregressive(encoder, d, steps=1)):
        with pytest.raises(InputError, match=r"model\.encoder"):
            make_model(Posterior(make, encoder=False))


def test_the_fast_elu_is_the_elu():
    grids = torch.linspace(-100, 100, 4001), torch.linspace(-1e-3, 1e-3, 2001), torch.tensor([-torch.inf, 1e30])
    x = torch.cat(grids)
    exact = nn.functional.elu(x.double())
    with torch.no_grad():
        fast = ELU()(x)
    assert ((fast - exact).abs() <= 2 * torch.finfo(x.dtype).eps * exact.abs().clamp(min=1)).all()
    assert torch.equal(ELU()(x), nn.functional.elu(x))
