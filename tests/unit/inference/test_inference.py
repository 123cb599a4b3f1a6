"""Every posterior: what holds for all of them; the Laplace family has tests of its own (test_laplace)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support.models.members import (
    CONTEXTS,
    LIKELIHOODS,
    POSTERIORS,
    Posterior,
    image_noise,
    make_data,
    make_model,
    reflections,
)
from torch import Tensor
from torch.distributions import kl_divergence

from vaerun.distributions import LatentDistribution
from vaerun.errors import InputError
from vaerun.estimators import elbo_mc
from vaerun.inference import Amortised, Householder, InverseAutoregressive, Laplace, SemiAmortised
from vaerun.inference.semi_amortised import clip_per_image
from vaerun.models import LatentModel

posteriors = pytest.mark.parametrize("posterior", POSTERIORS)
likelihoods = pytest.mark.parametrize("likelihood", LIKELIHOODS)
networks = pytest.mark.parametrize("network", ["mlp", "conv"])
contexts = pytest.mark.parametrize("context", CONTEXTS)


def infer(model: LatentModel, x: Tensor, c: Tensor | None, rows: list[int] | None = None) -> LatentDistribution:
    """q of these rows of x, c (None: all), each image with its own noise."""
    rows = list(range(len(x))) if rows is None else rows
    return model.infer(model.joint(x[rows], None if c is None else c[rows], image_noise(model, rows)))


def check_same(q: LatentDistribution, p: LatentDistribution, rows: list[int] | slice = slice(None)) -> None:
    """q is p restricted to these rows."""
    noise = torch.randn(5, *p.batch_shape, *p.event_shape)
    for a, b in zip(q.transform(noise[:, rows]), p.transform(noise), strict=True):
        torch.testing.assert_close(a, b[:, rows])
    if q.exact_moments:
        torch.testing.assert_close(q.mean, p.mean[rows])
        torch.testing.assert_close(q.covariance_matrix, p.covariance_matrix[rows])


@posteriors
@likelihoods
@networks
@contexts
def test_every_parameter_gets_a_gradient(posterior, likelihood, network, context):
    model = make_model(posterior, likelihood, network, context)
    joint = model.joint(*make_data(model, 4))
    (-elbo_mc(joint, model.infer(joint), 2).surrogate).mean().backward()
    named = dict(model.named_parameters())
    assert any(name.startswith("inference.") for name in named) == POSTERIORS[posterior].encoder
    for name, parameter in named.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-8, name


@posteriors
def test_a_fixed_variance_gets_none(posterior):
    model = make_model(posterior)
    model.likelihood.log_variance.requires_grad_(False)
    joint = model.joint(*make_data(model, 4))
    elbo_mc(joint, model.infer(joint), 2).surrogate.sum().backward()
    assert model.likelihood.log_variance.grad is None
    assert model.decoder.affine.weight.grad.abs().max() > 0
    assert model.parameter_groups()["variance"] == []


@posteriors
@likelihoods
@networks
@contexts
def test_a_row_does_not_depend_on_the_others(posterior, likelihood, network, context):
    model = make_model(posterior, likelihood, network, context)
    x, c = make_data(model, 5)
    q = infer(model, x, c)
    assert q.batch_shape == (5,)
    assert q.event_shape == (3,)
    for rows in ([2], [4, 0], [3, 1, 0, 2, 4]):
        check_same(infer(model, x, c, rows), q, rows)
    assert (q.centre[0] - q.centre[1]).abs().max() > 1e-3


@posteriors
@likelihoods
@contexts
def test_without_a_graph_the_posterior_is_the_same(posterior, likelihood, context):
    model = make_model(posterior, likelihood, "mlp", context)
    x, c = make_data(model, 4)
    q = infer(model, x, c)
    assert q.centre.requires_grad
    with torch.no_grad():
        p = infer(model, x, c)
        z, log_q = p.rsample_with_log_prob((2,))
        centre, moments = p.centre, (p.mean, p.covariance_matrix) if p.exact_moments else ()
    check_same(p, q)
    assert not any(t.requires_grad for t in (centre, *moments, z, log_q))
    assert all(parameter.grad is None for parameter in model.parameters())


@posteriors
def test_the_label_reaches_the_encoder(posterior):
    model = make_model(posterior, context="label")
    x, c = make_data(model, 3)
    a, b = infer(model, x, c), infer(model, x, c.roll(1, 0))
    assert ((a.centre - b.centre).abs().amax(1) > 1e-3).all()


@posteriors
def test_latent_spaces_of_one_dimension_and_single_images(posterior):
    model = make_model(posterior, d=1)
    q = infer(model, *make_data(model, 1))
    z, log_q = q.rsample_with_log_prob((4,))
    assert z.shape == (4, 1, 1)
    torch.testing.assert_close(log_q, q.log_prob(z))


@pytest.mark.parametrize("posterior", ["householder0", "iaf0", "semi0"])
@contexts
def test_no_steps_are_the_amortised_gaussian(posterior, context):
    plain, model = make_model("amortised", context=context), make_model(posterior, context=context, seed=7)
    for part in ("decoder", "likelihood"):
        getattr(model, part).load_state_dict(getattr(plain, part).state_dict())
    model.inference.base.load_state_dict(plain.inference.state_dict())
    model.mean.copy_(plain.mean)
    check_same(infer(model, *make_data(plain, 4)), infer(plain, *make_data(plain, 4)))


def test_amortised_reads_off_both_heads():
    model = make_model("amortised", context="label")
    x, c = make_data(model, 4)
    features, q = model.inference.encoder(x - model.mean, c), infer(model, x, c)
    torch.testing.assert_close(q.mean, model.inference.mean(features))
    torch.testing.assert_close(q.variance, model.inference.log_variance(features).exp())


def test_householder_vectors_are_a_chain():
    model = make_model("householder3")
    x, _ = make_data(model, 4)
    q, base = infer(model, x, None), model.inference.base
    h = base.encoder(x - model.mean, None)
    mean, variance = base.mean(h), base.log_variance(h).exp()
    vectors = []
    for layer in model.inference.vectors:
        h = layer(h)
        vectors.append(h)
    u = reflections(torch.stack(vectors))
    torch.testing.assert_close(q.mean, (u @ mean.unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(q.covariance_matrix, u @ torch.diag_embed(variance) @ u.mT)


# -- semi-amortised ---------------------------------------------------------------------------------------------------


class SameNoise:
    """The same numbers for every stream: common random numbers make the refined objective one smooth function."""

    def __init__(self, *shape: int) -> None:
        self.numbers, self.streams = torch.randn(*shape), []

    def __call__(self, stream: str, k: int) -> Tensor:
        self.streams.append((stream, k))
        return self.numbers[:k]


def semi(steps: int, step_size: float, **options) -> LatentModel:
    return make_model(Posterior(partial(SemiAmortised, steps=steps, step_size=step_size)), **options)


@likelihoods
@contexts
@pytest.mark.parametrize("graph", [True, False])
def test_each_refinement_raises_every_images_elbo(likelihood, context, graph):
    noise, values, options = SameNoise(1, 5, 3), [], {"likelihood": likelihood, "context": context}
    with torch.set_grad_enabled(graph):
        for steps in range(6):
            model = semi(steps, 1e-3, **options)
            joint = model.joint(*make_data(model, 5), noise)
            q = model.infer(joint)
            z, _ = q.transform(noise.numbers)
            values.append((joint.log_likelihood(z)[0] - kl_divergence(q, joint.prior)).detach())
    assert (torch.stack(values).diff(dim=0) > 0).all()


@contexts
def test_one_refinement_is_one_gradient_step(context):
    model = semi(1, 0.05, context=context)
    joint = model.joint(*make_data(model, 4), SameNoise(1, 4, 3))
    _, mean, log_variance = (t.detach().requires_grad_() for t in model.inference.base.parameters_of(joint))
    z = mean + torch.exp(0.5 * log_variance) * joint.noise.numbers[0]
    prior = joint.prior
    kl = 0.5 * (
        log_variance.exp() / prior.variance
        + (mean - prior.mean).square() / prior.variance
        - 1
        - log_variance
        + prior.variance.log()
    )
    elbo = joint.likelihood.log_prob(joint.x, joint.decode(z)) - kl.sum(-1)
    gradients = torch.autograd.grad(elbo.sum(), (mean, log_variance))
    q = model.infer(joint)
    for start, end, gradient in zip((mean, log_variance), (q.mean, q.log_variance), gradients, strict=True):
        step = gradient * (5 / gradient.norm(dim=1, keepdim=True)).clamp(max=1)
        torch.testing.assert_close(end, start + 0.05 * step)


def test_steps_draw_fresh_noise_and_clip_each_part():
    model, start = semi(3, 0.1), semi(0, 0.1)
    with torch.no_grad():
        for m in (model, start):
            m.likelihood.log_variance.fill_(-12.0)  # a gradient far longer than 5
    noise = SameNoise(1, 4, 3)
    q = model.infer(model.joint(*make_data(model, 4), noise))
    assert noise.streams == [("refinement/0", 1), ("refinement/1", 1), ("refinement/2", 1)]
    one_step = semi(1, 0.1)
    one_step.load_state_dict(model.state_dict())
    p, base = (m.infer(m.joint(*make_data(m, 4), noise)) for m in (one_step, start))
    for name in ("mean", "log_variance"):
        step = (getattr(p, name) - getattr(base, name)).norm(dim=1)
        torch.testing.assert_close(step, torch.full((4,), 0.5))
    assert q.mean.requires_grad


def test_clip_rows():
    rows = torch.tensor([[3.0, 4.0], [30.0, 40.0], [0.0, 0.0], [0.3, -0.4], [-6e9, 8e9]]).requires_grad_()
    clipped = clip_per_image(rows)
    torch.testing.assert_close(clipped.norm(dim=1), torch.tensor([5.0, 5.0, 0.0, 0.5, 5.0]))
    torch.testing.assert_close(clipped[[0, 2, 3]], rows[[0, 2, 3]])
    torch.testing.assert_close(clipped[1], torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(clip_per_image(rows, 1.0)[0], torch.tensor([0.6, 0.8]))
    clipped.sum().backward()
    assert rows.grad.isfinite().all()


# -- refused ----------------------------------------------------------------------------------------------------------

MAKERS = [Householder, InverseAutoregressive, Laplace, partial(SemiAmortised, step_size=0.1)]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("steps", [-1, True, 1.0, 2.5])
def test_senseless_steps_are_refused(make, steps):
    encoder = make_model("amortised").inference.encoder
    with pytest.raises(InputError, match="steps"):
        make(encoder, 3, steps=steps)


def test_senseless_options_are_refused():
    encoder = make_model("amortised").inference.encoder
    with pytest.raises(InputError, match="damping"):
        Laplace(encoder, 3, steps=1, damping="half")
    for step_size in (0, -0.1, float("nan")):
        with pytest.raises(InputError, match="step_size"):
            SemiAmortised(encoder, 3, steps=1, step_size=step_size)
    assert isinstance(Amortised(encoder, 3), torch.nn.Module)
