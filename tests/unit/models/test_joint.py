"""The joint's linearisation and fast paths against explicit Jacobians and direct decoding; shapes of the networks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from support.models.members import CONTEXTS, LIKELIHOODS, NETWORKS, Network, make_data, make_model, mlp
from torch import Tensor
from torch.autograd.functional import jacobian

from vaerun.errors import InputError
from vaerun.evaluation import log_likelihood
from vaerun.models import Gaussian, LatentModel
from vaerun.models.joint import Joint
from vaerun.nets import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from vaerun.nets.init import linear

contexts = pytest.mark.parametrize("context", CONTEXTS)
TRUNKS = [([], "relu"), ([7], "relu"), ([7], "tanh"), ([9, 8], "relu"), ([9, 8], "tanh")]


def log_prob_at(joint: Joint, z: Tensor) -> Tensor:
    """log p(x, z | c) [B] at z [B, d], spelled out with torch's own distributions."""
    prior = torch.distributions.Normal(joint.prior.mean, joint.prior.variance.sqrt())
    likelihood = joint.likelihood.distribution(joint.decoder(z, joint.c) + joint.offset)
    return prior.log_prob(z).sum(-1) + likelihood.log_prob(joint.x)


def explicit(joint: Joint, mu: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and Gauss-Newton precision from the explicit Jacobian and the variance of the likelihood."""
    rows = jacobian(lambda z: joint.decode(z).flatten(1), mu)  # [B, D, B, d]
    j = torch.stack([rows[i, :, i] for i in range(len(mu))])
    at = mu.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(log_prob_at(joint, at).sum(), at)
    variance = joint.likelihood.distribution(joint.decode(mu)).variance.flatten(1)
    weight = 1 / variance if isinstance(joint.likelihood, Gaussian) else variance  # eta is the mean; the logit
    return gradient, j.mT @ (weight.unsqueeze(-1) * j) + torch.diag_embed(1 / joint.prior.variance)


def example(model: LatentModel, b: int) -> tuple[Joint, Tensor]:
    return model.joint(*make_data(model, b)), torch.randn(b, model.latent_dim)


def check_linearisation(model: LatentModel, b: int, gram: bool) -> None:
    joint, mu = example(model, b)
    assert joint.has_gram == gram
    local = joint.linearise(mu)
    gradient, precision = explicit(joint, mu)
    torch.testing.assert_close(local.gradient, gradient)
    torch.testing.assert_close(local.precision, precision)
    if gram:
        for actual, expected in zip(
            joint._linearise_gram(joint._linear_map(mu)), joint._linearise_general(joint._linear_map(mu)), strict=True
        ):
            torch.testing.assert_close(actual, expected)


@contexts
@pytest.mark.parametrize(("hidden", "activation"), TRUNKS)
@pytest.mark.parametrize(("d", "b"), [(3, 4), (1, 4), (3, 1), (1, 1)])
def test_gram_path_is_the_explicit_jacobian(context, hidden, activation, d, b):
    check_linearisation(make_model("amortised", "gaussian", mlp(hidden, activation), context, d=d), b, gram=True)


@contexts
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(("d", "b"), [(3, 4), (1, 1)])
def test_linearisation_is_the_explicit_jacobian(context, network, likelihood, d, b):
    model = make_model("amortised", likelihood, network, context, d=d)
    check_linearisation(model, b, gram=network != "conv" and likelihood == "gaussian")


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_dead_units_leave_the_prior(likelihood):
    model = make_model("amortised", likelihood, "relu")
    with torch.no_grad():
        for layer in model.decoder.stack.layers:
            layer.bias.fill_(-1e3)
    joint, mu = example(model, 4)
    local = joint.linearise(mu)
    torch.testing.assert_close(local.precision, torch.eye(3).expand(4, 3, 3))
    torch.testing.assert_close(local.gradient, -mu)
    check_linearisation(model, 4, gram=likelihood == "gaussian")


@contexts
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_precision_is_minus_the_hessian_on_linear_decoders(context, likelihood):
    joint, mu = example(make_model("amortised", likelihood, "linear", context), 4)
    for i, precision in enumerate(joint.linearise(mu).precision):
        hessian = torch.autograd.functional.hessian(
            lambda z, i=i: joint.log_prob(torch.cat([mu[:i], z[None], mu[i + 1 :]])[None])[0, i], mu[i]
        )
        torch.testing.assert_close(precision, -hessian)


@contexts
@pytest.mark.parametrize("network", ["linear", "mlp", "relu"])
def test_parameter_gradients_agree_between_the_paths(context, network):
    model = make_model("amortised", "gaussian", network, context)
    joint, mu = example(model, 4)
    mu.requires_grad_()
    parts = [*model.decoder.parameters(), model.likelihood.log_variance, mu]
    weights = torch.randn(4, 3), torch.randn(4, 3, 3)
    results = []
    for linearise in (joint._linearise_gram, joint._linearise_general):
        value = sum(
            (w * out).sum() for w, out in zip(weights, linearise(joint._linear_map(mu.view_as(mu))), strict=True)
        )
        results.append(torch.autograd.grad(value, parts, materialize_grads=True))
    for part, a, b in zip(parts, *results, strict=True):
        torch.testing.assert_close(a, b)
        assert a.abs().max() > 1e-6 or (network == "linear" and part is mu)


@contexts
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_log_prob_is_spelled_out(context, network, likelihood):
    joint, _ = example(make_model("amortised", likelihood, network, context), 4)
    for samples in (2, 20):  # 20: by the Gram matrix where there is one
        z = torch.randn(samples, 4, 3)
        assert joint._gram_is_cheaper(z) == (joint.has_gram and samples == 20)
        torch.testing.assert_close(joint.log_prob(z), torch.stack([log_prob_at(joint, row) for row in z]))


@contexts
def test_the_label_matters_to_conditional_models_only(context):
    model = make_model("amortised", "gaussian", "mlp", context)
    x, _ = make_data(model, 3)
    c, z = torch.eye(3), torch.randn(2, 3, 3)
    a, b = model.joint(x, c).log_likelihood(z), model.joint(x, c.flip(0)).log_likelihood(z)
    assert torch.allclose(a[:, [0, 2]], b[:, [0, 2]]) == (context == "plain")
    p, q = model.joint(x, c).prior, model.joint(x, c.flip(0)).prior
    assert torch.allclose(p.mean, q.mean) == (context != "label_prior")
    if context == "label_prior":
        mean, log_variance = model.prior_head(c).split(3, dim=-1)
        torch.testing.assert_close(p.mean, mean)
        torch.testing.assert_close(p.variance, log_variance.exp())
        start = make_model("amortised", "gaussian", "mlp", context, randomise=False).prior(c)
        assert torch.equal(start.mean, torch.zeros(3, 3))
        assert torch.equal(start.variance, torch.ones(3, 3))


@contexts
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_samples_are_means_at_draws_of_the_prior(context, likelihood):
    model = make_model("amortised", likelihood, "mlp", context)
    c, noise = (torch.eye(3) if model.classes else None), torch.randn(3, 3)
    prior = model.joint(model.mean.expand(3, -1, -1, -1), c).prior
    z = prior.mean + prior.variance.sqrt() * noise
    expected = model.likelihood.distribution(model.joint(model.mean.expand(3, -1, -1, -1), c).decode(z)).mean
    torch.testing.assert_close(model.sample(3, c, noise=lambda *shape, **_: noise.reshape(shape)), expected)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_each_parameter_is_in_one_group(likelihood):
    model = make_model("amortised", likelihood, "mlp", "label_prior")
    groups = model.parameter_groups()
    together = [id(p) for group in groups.values() for p in group]
    assert len(set(together)) == len(together)
    assert set(together) == {id(p) for p in model.parameters()}
    assert len(groups["variance"]) == (likelihood == "gaussian")


# -- many samples without decoding them -------------------------------------------------------------------------------

WIDE = replace(mlp([8], "tanh"), shape=(1, 8, 8))


@contexts
def test_gram_log_likelihood_is_that_of_the_decoded_samples(context):
    model = make_model("amortised", "gaussian", WIDE, context)
    joint, _ = example(model, 3)
    z = torch.randn(200, 3, 3).requires_grad_()
    assert joint._gram_is_cheaper(z)
    assert not joint._gram_is_cheaper(z[:1])
    direct = model.likelihood.log_prob(joint.x, joint.decode(z))
    torch.testing.assert_close(joint.log_likelihood(z), direct, atol=1e-9, rtol=0)
    parts = [*model.decoder.parameters(), model.likelihood.log_variance, z]
    weight = torch.randn(200, 3)
    actual, expected = (torch.autograd.grad((weight * v).sum(), parts) for v in (joint.log_likelihood(z), direct))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_gram_log_likelihood_in_float32_at_the_size_of_cifar():
    net = Network((3, 32, 32), partial(MLPEncoder, hidden=[4]), partial(MLPDecoder, hidden=[500, 500]))
    model = make_model("amortised", "gaussian", net, d=50)
    with torch.no_grad():
        model.likelihood.log_variance.fill_(-4.0)
        model.decoder.affine.weight.mul_(3)  # far from the offset: an expansion about h = 0 would err by 0.03
    mean = torch.randn(2, 50)
    x = model.decode_mean(mean).detach() + 0.13 * torch.randn(2, 3, 32, 32)
    z = mean + 0.1 * torch.randn(600, 2, 50)
    with torch.no_grad():
        exact = model.joint(x).likelihood.log_prob(x, model.joint(x).decode(z))
        joint = model.float().joint(x.float())
        assert joint._gram_is_cheaper(z)
        result = joint.log_likelihood(z.float())
    assert result.dtype == torch.float32
    assert (result - exact).abs().max() < 0.003


def test_what_was_made_without_a_graph_does_not_serve_where_one_is_needed():
    model = make_model("amortised", "gaussian", "mlp")
    joint, mu = example(model, 2)
    with torch.no_grad():
        without = joint.linearise(mu)
    local = joint.linearise(mu)
    torch.testing.assert_close(local.precision, without.precision)
    local.precision.sum().backward()
    assert not without.precision.requires_grad
    assert model.decoder.affine.weight.grad.abs().max() > 0
    assert model.likelihood.log_variance.grad.abs() > 0


# -- networks ---------------------------------------------------------------------------------------------------------

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 33, 17)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("channels", [[4], [4, 3], [5, 4, 3]])
def test_conv_networks_of_any_image_size(shape, classes, channels):
    decoder = ConvDecoder(2, shape, classes, channels=channels, hidden=[6])
    z, c = torch.randn(5, 4, 2), torch.eye(3)[[0, 2, 1, 1]] if classes else None
    out = decoder(z, c)
    assert out.shape == (5, 4, *shape)
    torch.testing.assert_close(out, torch.stack([decoder(row, c) for row in z]))
    torch.testing.assert_close(decoder(z.unflatten(0, (1, 5)), c), out.unsqueeze(0))
    encoder = ConvEncoder(shape, classes, channels=channels, hidden=[6])
    assert encoder(out[0], c).shape == (4, encoder.features)
    assert ConvEncoder(shape, classes, channels=channels, hidden=[])(out[0], c).shape[0] == 4


def test_mlp_decoder_with_leading_dimensions():
    decoder = MLPDecoder(2, (1, 3, 4), 3, hidden=[5])
    z, c = torch.randn(5, 4, 2), torch.eye(3)[[0, 2, 1, 1]]
    torch.testing.assert_close(decoder(z, c), torch.stack([decoder(row, c) for row in z]))
    assert decoder(z, c).shape == (5, 4, 1, 3, 4)


def test_senseless_networks_are_refused():
    with pytest.raises(InputError, match="too small"):
        ConvEncoder((1, 8, 8), channels=[2, 2, 2, 2], hidden=[])
    with pytest.raises(InputError, match="integers"):
        MLPDecoder(2, (1, 3, 4), hidden=[0])
    with pytest.raises(InputError, match="activation"):
        MLPEncoder((1, 3, 4), hidden=[3], activation="typo")


@pytest.mark.parametrize(("activation", "gain"), [("relu", 2.0), ("linear", 1.0)])
def test_initialisation_has_the_variance_of_he(activation, gain):
    weight = linear(300, 400, activation).weight
    assert weight.var().item() == pytest.approx(gain / 400, rel=0.02)
    stacked = MLPDecoder(300, (1, 20, 20), hidden=[200], activation="relu")
    assert stacked.stack.layers[0].weight.var().item() == pytest.approx(2 / 200, rel=0.03)
    assert stacked.affine.weight.var().item() == pytest.approx(1 / 400, rel=0.03)


def test_labels_that_are_missing_are_asked_for() -> None:
    """With an error of the model, not one about shapes; an unconditional model ignores labels."""
    for context in CONTEXTS:
        model = make_model("amortised", "gaussian", mlp([7], "relu"), context)
        x, _ = make_data(model, 3)
        if model.classes:
            with pytest.raises(InputError, match=rf"pass c, one-hot labels \[B, {model.classes}\]"):
                model.joint(x)
            with pytest.raises(InputError, match="conditional"):
                log_likelihood(model, x, samples=10)
        else:
            assert model.joint(x, torch.eye(3)).c is None
