"""DRAW's recurrent posterior against its equations."""

from __future__ import annotations

import math

import pytest
import torch
from support.models.draw import WINDOWS, draw, infer, lstm
from support.models.members import CONTEXTS, LIKELIHOODS, make_data
from torch import Tensor

from vaerun.distributions import StandardNormal
from vaerun.evaluation import log_likelihood
from vaerun.models import LatentModel

windows = pytest.mark.parametrize("window", WINDOWS)
attentions = pytest.mark.parametrize("window", ["plain", "attention"])
likelihoods = pytest.mark.parametrize("likelihood", LIKELIHOODS)
contexts = pytest.mark.parametrize("context", CONTEXTS)


# -- the posterior against its equations ------------------------------------------------------------------------------


def spelled_out(model: LatentModel, x: Tensor, c: Tensor | None, z: Tensor) -> tuple[Tensor, Tensor]:
    """log q(z | x, c) [B] and the canvas [B, C, H, W] for z [B, d] by the paper's equations 3-8, torch's own cells."""
    encoder, decoder, inference = model.inference.encoder, model.decoder, model.inference
    encode, decode = lstm(encoder.cell), lstm(decoder.cell)
    b, label = len(x), [] if c is None else [c]
    canvas = decoder.canvas_bias.expand(b, -1, -1, -1)
    h_enc, s_enc = encoder.hidden_bias.expand(b, -1), encoder.cell_bias.expand(b, -1)
    h_dec, s_dec = decoder.hidden_bias.expand(b, -1), decoder.cell_bias.expand(b, -1)
    log_q = torch.zeros(b)
    for piece in z.chunk(decoder.steps, -1):
        eta = canvas + model.offset
        error = x - (eta.sigmoid() if model.likelihood.name == "bernoulli" else eta)
        glimpse = torch.cat([x - model.mean, error], 1)
        if encoder.read.window is not None:
            rows, columns, intensity = (t.squeeze(1) for t in encoder.read.window(h_dec))
            glimpse = intensity[..., None] * torch.einsum("bih,bchw,bjw->bcij", rows, glimpse, columns)
        h_enc, s_enc = encode(torch.cat([glimpse.flatten(1), h_dec, *label], 1), (h_enc, s_enc))
        mean, log_variance = inference.mean(h_enc), inference.log_variance(h_enc)
        log_q = log_q + torch.distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(piece).sum(-1)
        h_dec, s_dec = decode(torch.cat([piece, *label], 1), (h_dec, s_dec))
        patch = decoder.write.patch(h_dec).unflatten(-1, decoder.write.shape)
        if decoder.write.window is not None:
            rows, columns, intensity = (t.squeeze(1) for t in decoder.write.window(h_dec))
            patch = torch.einsum("bih,bcij,bjw->bchw", rows, patch, columns) / intensity[..., None]
        canvas = canvas + patch
    return log_q, canvas


@windows
@likelihoods
@contexts
def test_density_and_canvas_are_spelled_out(window, likelihood, context):
    model = draw(window, likelihood, context)
    x, c = make_data(model, 4)
    z = torch.randn(4, 6)
    log_q, canvas = spelled_out(model, x, c, z)
    torch.testing.assert_close(model.infer(model.joint(x, c)).log_prob(z), log_q)
    torch.testing.assert_close(model.decoder(z, c), canvas)
    torch.testing.assert_close(model.joint(x, c).decode(z), canvas + model.offset)


@windows
@likelihoods
@contexts
def test_drawing_and_scoring_agree(window, likelihood, context):
    q = infer(draw(window, likelihood, context))
    assert (q.batch_shape, q.event_shape, q.exact_moments) == ((4,), (6,), False)
    for leading in ((), (3,), (2, 3)):
        z, log_q = q.rsample_with_log_prob(leading)
        assert z.shape == (*leading, 4, 6)
        torch.testing.assert_close(log_q, q.log_prob(z))


def test_noise_becomes_a_sample_of_that_density():
    # log q(z) = log N(noise) - log|dz / dnoise|, image by image.
    q, noise = infer(draw()), torch.randn(1, 4, 6)
    _, log_q = q.transform(noise)
    jacobian = torch.autograd.functional.jacobian(lambda e: q.transform(e)[0], noise).squeeze(3).squeeze(0)
    for b in range(4):
        log_det = torch.linalg.slogdet(jacobian[b, :, b])[1]
        torch.testing.assert_close(log_q[0, b], StandardNormal(noise).log_prob(noise)[0, b] - log_det)
        others = [a for a in range(4) if a != b]
        assert (jacobian[b, :, others] == 0).all()
        assert (jacobian[b, :, b].triu(1) == 0).all()  # a piece depends on the pieces before it
        assert jacobian[b, 2:, b, :2].abs().max() > 1e-3


@attentions
@contexts
def test_neither_rows_nor_samples_depend_on_each_other(window, context):
    model = draw(window, context=context)
    noise = torch.randn(3, 5, 6)
    z, log_q = infer(model, 5).transform(noise)
    for rows in ([2], [4, 0], [3, 1, 0, 2, 4]):
        part, log_part = infer(model, 5, rows).transform(noise[:, rows])
        torch.testing.assert_close(part, z[:, rows])
        torch.testing.assert_close(log_part, log_q[:, rows])
    for k in range(3):
        alone, log_alone = infer(model, 5).transform(noise[[k]])
        torch.testing.assert_close(alone[0], z[k])
        torch.testing.assert_close(log_alone[0], log_q[k])
    _, c = make_data(model, 5)
    torch.testing.assert_close(model.decoder(z, c)[1], model.decoder(z[1], c))
    assert (z[:, 0] - z[:, 1]).abs().max() > 1e-2


def test_the_centre_is_the_image_of_no_noise():
    q = infer(draw())
    torch.testing.assert_close(q.centre, q.transform(torch.zeros(1, 4, 6))[0][0])


@contexts
def test_one_step_is_an_amortised_gaussian(context):
    model = draw("plain", context=context, steps=1, n=3)
    x, c = make_data(model, 4)
    q, encoder = model.infer(model.joint(x, c)), model.inference.encoder
    error = x - model.decoder.canvas_bias - model.offset
    state = encoder.initial(4)
    h = encoder.advance(state, x - model.mean, error, model.decoder.hidden_bias.expand(4, -1), c).h
    mean, log_variance = model.inference.mean(h), model.inference.log_variance(h)
    z = torch.randn(7, 4, 3)
    expected = torch.distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(z).sum(-1)
    torch.testing.assert_close(q.log_prob(z), expected)
    torch.testing.assert_close(q.centre, mean)
    assert (mean[0] - mean[1]).abs().max() > 1e-3


def grid(points: int = 121, reach: float = 6.0) -> tuple[Tensor, float]:
    """z [n^2, 1, 2] over a square, and log of a cell's area."""
    line = torch.linspace(-reach, reach, points)
    return torch.cartesian_prod(line, line).unsqueeze(1), 2 * math.log(float(line[1] - line[0]))


@windows
@likelihoods
def test_the_density_integrates_to_one(window, likelihood):
    model = draw(window, likelihood, steps=2, n=1, shape=(1, 3, 4))
    z, log_cell = grid()
    with torch.no_grad():
        q = infer(model, 2)
        total = torch.logsumexp(q.log_prob(z.expand(-1, 2, -1)) + log_cell, 0)
    torch.testing.assert_close(total, torch.zeros(2), atol=1e-4, rtol=0)


@attentions
@likelihoods
def test_weighted_bounds_rise_to_the_exact_likelihood(window, likelihood):
    model = draw(window, likelihood, steps=2, n=1, shape=(1, 3, 4))
    x, _ = make_data(model, 2)
    z, log_cell = grid()
    means, errors = [], []
    with torch.no_grad():
        exact = torch.logsumexp(model.joint(x).log_prob(z.expand(-1, 2, -1)) + log_cell, 0)
        joint = model.joint(x)
        q = model.infer(joint)
        for k in (1, 4, 16):
            drawn, log_q = q.rsample_with_log_prob((1500, k))
            bounds = torch.logsumexp(joint.log_prob(drawn) - log_q, 1) - math.log(k)
            means.append(bounds.mean(0))
            errors.append(bounds.std(0) / 1500**0.5)
        assert torch.stack(means).diff(dim=0).gt(0).all()
        assert all((m < exact + 4 * e).all() for m, e in zip(means, errors, strict=True))
        drawn, log_q = q.rsample_with_log_prob((20_000,))
        weights = torch.exp(joint.log_prob(drawn) - log_q - exact)  # of mean one
        error = weights.std(0) / 20_000**0.5
        assert (error < 0.1).all()
        assert ((weights.mean(0) - 1).abs() < 4 * error).all()
        torch.testing.assert_close(log_likelihood(model, x, samples=20_000), exact, atol=0.1, rtol=0)
