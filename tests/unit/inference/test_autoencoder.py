"""A plain autoencoder: a point in place of a posterior; refused where a density is needed; linear, it is PCA."""

from __future__ import annotations

import pytest
import torch
from sklearn.decomposition import PCA
from support.models.members import (
    CONTEXTS,
    ESTIMATORS,
    LIKELIHOODS,
    NETWORKS,
    POSTERIORS,
    Network,
    Posterior,
    make_data,
    make_model,
)
from torch import Tensor, nn

from vaerun.distributions import Delta
from vaerun.errors import InputError
from vaerun.estimators import estimate, reconstruction
from vaerun.inference import Deterministic
from vaerun.models import LatentModel
from vaerun.nets import MLPDecoder

POINT = Posterior(Deterministic)
contexts = pytest.mark.parametrize("context", CONTEXTS)


@contexts
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_reconstruction_is_the_density_of_x_at_the_encoders_point(context, likelihood, network):
    model = make_model(POINT, likelihood, network, context)
    x, c = make_data(model, 4)
    z = model.inference.value(model.inference.encoder(x - model.mean, c))
    output = model.decoder(z, c) + model.offset
    expected = model.likelihood.log_prob(x, output)
    actual = estimate(reconstruction, model.infer, model.joint(x, c), 1)
    assert actual.name == "reconstruction"
    assert actual.terms.keys() == {"reconstruction"}
    for value in (actual.bound, actual.surrogate, actual.terms["reconstruction"]):
        torch.testing.assert_close(value, expected)
    part = estimate(reconstruction, model.infer, model.joint(x[[2]], None if c is None else c[[2]]), 7)  # K: no effect
    torch.testing.assert_close(part.surrogate, expected[[2]])
    torch.testing.assert_close(model.infer(model.joint(x, c)).centre, z)
    (-actual.surrogate).mean().backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("prior_head"):
            assert parameter.grad.abs().max() > 1e-8, name


def test_a_held_point_passes_no_gradient():
    model = make_model(POINT)
    joint = model.joint(*make_data(model, 2))
    reconstruction(joint, model.infer(joint).detach(), 1).surrogate.sum().backward()
    assert all(p.grad is None for p in model.inference.parameters())
    assert model.decoder.affine.weight.grad.abs().max() > 0


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
@contexts
def test_every_bound_is_refused(estimator, context):
    model = make_model(POINT, context=context)
    with pytest.raises(InputError, match="estimator=reconstruction") as refusal:
        estimate(ESTIMATORS[estimator].make(), model.infer, model.joint(*make_data(model, 2)), 2)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("posterior", POSTERIORS)
@contexts
def test_reconstruction_is_refused_for_every_distribution(posterior, context):
    model = make_model(posterior, context=context)
    with pytest.raises(InputError, match="estimator=elbo") as refusal:
        estimate(reconstruction, model.infer, model.joint(*make_data(model, 2)), 2)
    assert "\n" not in str(refusal.value)


@contexts
def test_there_is_nothing_to_sample(context):
    model, vae = make_model(POINT, context=context), make_model("amortised", context=context)
    _, c = make_data(model, 2)
    assert not model.has_density
    assert vae.has_density
    assert vae.sample(2, c).shape == (2, *vae.image_shape)
    with pytest.raises(InputError, match="no prior"):
        model.sample(2, c)


def test_a_point_has_no_density():
    point = Delta(torch.randn(3, 2))
    for use in (
        point.rsample,
        lambda: point.log_prob(torch.zeros(3, 2)),
        lambda: point.transform(torch.zeros(1, 3, 2)),
    ):
        with pytest.raises(InputError, match="no posterior"):
            use()
    with pytest.raises(InputError, match=r"model\.encoder"):
        Deterministic(None, 2)


# -- linear: principal components -------------------------------------------------------------------------------------


class Pixels(nn.Module):
    """An encoder without layers: the head that follows is the whole linear map."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.features = shape[0] * shape[1] * shape[2]

    def forward(self, x: Tensor, c: Tensor | None) -> Tensor:
        return x.flatten(1)


def trained(x: Tensor, d: int) -> LatentModel:
    """A linear autoencoder after L-BFGS on its own objective."""
    shape = tuple(x.shape[1:])
    linear = Network(shape, Pixels, lambda d, shape, classes: MLPDecoder(d, shape, classes, hidden=[]))
    model = make_model(POINT, network=linear, d=d)
    model.likelihood.log_variance.requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.LBFGS(parameters, max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = -estimate(reconstruction, model.infer, model.joint(x), 1).surrogate.mean()
        value.backward()
        return value

    optimiser.step(loss)
    return model


@pytest.mark.parametrize("d", [1, 3])
def test_a_linear_autoencoder_reaches_the_error_of_pca(d):
    source = torch.Generator().manual_seed(0)
    scales = torch.linspace(2, 0.2, 12)
    mixing = torch.linalg.qr(torch.randn(12, 12, generator=source))[0]
    x = (torch.randn(80, 12, generator=source) * scales) @ mixing + torch.randn(12, generator=source)
    model = trained(x.view(80, 1, 3, 4), d)
    with torch.no_grad():
        z = model.infer(model.joint(x.view(80, 1, 3, 4))).centre
        error = (model.decode_mean(z).flatten(1) - x).square().sum(1).mean()
    pca = PCA(d).fit(x.numpy())
    best = torch.as_tensor(pca.inverse_transform(pca.transform(x.numpy())))
    torch.testing.assert_close(error, (best - x).square().sum(1).mean(), rtol=1e-6, atol=0)
    # Not the components themselves, but their span.
    basis = torch.linalg.qr(model.decoder.affine.weight.detach())[0]
    torch.testing.assert_close(basis @ basis.T, torch.as_tensor(pca.components_.T @ pca.components_), rtol=0, atol=1e-3)
