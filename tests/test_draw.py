"""DRAW: windows of filters, the recurrent posterior against its equations, and its place among the other models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from members import CONTEXTS, LIKELIHOODS, NETWORKS, Network, Posterior, image_noise, make_data, make_model
from torch import Tensor, nn

from vaerun.distributions import RecurrentNormal, StandardNormal, held_module
from vaerun.errors import InputError
from vaerun.estimators import dreg, elbo, elbo_mc, iwae, stl
from vaerun.evaluation import log_likelihood
from vaerun.inference import Amortised, Laplace, Recurrent
from vaerun.models import LatentModel
from vaerun.models.joint import value_and_jacobian
from vaerun.nets import DrawDecoder, DrawEncoder
from vaerun.nets.draw import LSTMCell, Reader, Window, Writer, filterbank

WINDOWS = {"plain": (None, None), "attention": (3, 2), "reads": (2, None), "writes": (None, 3)}
"""Sizes of the reading and of the writing window."""

windows = pytest.mark.parametrize("window", WINDOWS)
attentions = pytest.mark.parametrize("window", ["plain", "attention"])
likelihoods = pytest.mark.parametrize("likelihood", LIKELIHOODS)
contexts = pytest.mark.parametrize("context", CONTEXTS)


def network(steps: int, window: str = "attention", shape: tuple[int, ...] = (2, 4, 5)) -> Network:
    read, write = WINDOWS[window]
    return Network(
        shape,
        partial(DrawEncoder, hidden=6, read_size=read, decoder_hidden=5),
        partial(DrawDecoder, steps=steps, hidden=5, write_size=write),
    )


def draw(
    window: str = "attention",
    likelihood: str = "gaussian",
    context: str = "plain",
    *,
    steps: int = 3,
    n: int = 2,
    **other,
) -> LatentModel:
    """A model whose posterior differs from its prior and whose steps differ from each other."""
    made = Posterior(partial(Recurrent, steps=steps))
    model = make_model(made, likelihood, network(steps, window, **other), context, d=steps * n)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and name != "prior_head.weight":
                parameter.mul_(2)
    return model


def infer(model: LatentModel, b: int = 4, rows: list[int] | None = None) -> RecurrentNormal:
    x, c = make_data(model, b)
    rows = list(range(b)) if rows is None else rows
    return model.infer(model.joint(x[rows], None if c is None else c[rows]))


# -- filters and windows ----------------------------------------------------------------------------------------------


def test_filters_are_those_of_the_paper():
    centre, stride, log_variance = torch.tensor([2.3, -4.0]), torch.tensor([0.7, 2.0]), torch.tensor([-0.4, 1.1])
    found = filterbank(centre, stride, log_variance, 4, 6)
    assert found.shape == (2, 4, 6)
    for b in range(2):
        for i in range(1, 5):
            mu = centre[b] + (i - 4 / 2 - 0.5) * stride[b]
            row = [math.exp(-((a - mu) ** 2) / (2 * log_variance[b].exp())) for a in range(1, 7)]
            torch.testing.assert_close(found[b, i - 1], torch.tensor(row) / sum(row))


def test_filters_sum_to_one_wherever_they_are():
    centre, stride = torch.tensor([4.0, -1e3, 1e4]), torch.tensor([0.0, 1.0, 50.0])
    for log_variance in (-6.0, 0.0, 6.0):
        bank = filterbank(centre, stride, torch.full((3,), log_variance), 3, 7)
        assert bank.isfinite().all()
        torch.testing.assert_close(bank.sum(-1), torch.ones(3, 3))


@pytest.mark.parametrize("size", [2, 3, 6])
def test_filters_lie_about_the_centre_at_equal_strides(size):
    # Well inside a long row of pixels, a filter's mean and variance are those that it was given.
    centre, stride = torch.tensor([48.6, 51.0]), torch.tensor([3.1, 0.4])
    bank, pixels = filterbank(centre, stride, torch.tensor([0.3, 1.2]), size, 100), torch.arange(1.0, 101.0)
    means = bank @ pixels
    torch.testing.assert_close(means.mean(-1), centre)
    torch.testing.assert_close(means.diff(dim=-1), stride[:, None].expand(-1, size - 1))
    spread = (bank * (pixels - means.unsqueeze(-1)).square()).sum(-1)
    torch.testing.assert_close(spread, torch.tensor([0.3, 1.2]).exp()[:, None].expand(-1, size))


def placed(part: nn.Module, x: float, y: float, log_variance: float, log_stride: float, log_intensity: float) -> None:
    """Let the window lie there whatever the state."""
    with torch.no_grad():
        part.place.weight.zero_()
        part.place.bias.copy_(torch.tensor([x, y, log_variance, log_stride, log_intensity]))


@pytest.mark.parametrize(("height", "width"), [(6, 11), (11, 6), (7, 7)])
def test_a_window_lies_where_the_state_says(height, width):
    window = Window(5, 4, height, width)
    h = torch.randn(3, 2, 5)
    rows, columns, intensity = window(h)
    assert (rows.shape, columns.shape, intensity.shape) == ((3, 2, 1, 4, height), (3, 2, 1, 4, width), (3, 2, 1, 1, 1))
    x, y, log_variance, log_stride, log_intensity = (h @ window.place.weight.mT + window.place.bias).unbind(-1)
    stride = (max(height, width) - 1) / 3 * log_stride.exp()
    for found, place, length in ((rows, y, height), (columns, x, width)):
        expected = filterbank((length + 1) / 2 * (place + 1), stride, log_variance, 4, length)
        torch.testing.assert_close(found.squeeze(-3), expected)
    torch.testing.assert_close(intensity.flatten(), log_intensity.exp().flatten())


def test_a_window_at_rest_spans_the_image():
    window = Window(5, 3, 9, 17)
    placed(window, 0, 0, -6, 0, 0)  # sharp
    rows, columns, _ = window(torch.zeros(1, 5))
    assert columns.squeeze().argmax(-1).tolist() == [0, 8, 16]
    assert rows.squeeze().argmax(-1)[1] == 4


def read_at(reader: Reader, images: Tensor, *place: float) -> Tensor:
    placed(reader.window, *place)
    return reader(images, torch.zeros(len(images), 5)).unflatten(-1, (images.shape[1], 3, 3))


def centred(pixel: float, length: int) -> float:
    """The coordinate that puts a window's centre on that pixel (1..length)."""
    return 2 * pixel / (length + 1) - 1


def test_what_is_written_lies_where_the_window_is_and_is_read_back_there():
    height, width = 15, 21
    reader, writer = Reader(1, height, width, 5, 3), Writer((1, height, width), 5, 3)
    place = (centred(14, width), centred(5, height), -4.0, math.log(3 * 2 / 20), 0.7)  # sharp, a stride of 3
    placed(writer.window, *place)
    with torch.no_grad():
        writer.patch.weight.zero_()
    patch = writer.patch.bias.requires_grad_(False).copy_(torch.arange(1.0, 10)).reshape(3, 3)
    canvas = writer(torch.zeros(1, 5))
    assert canvas.shape == (1, 1, height, width)
    expected = torch.zeros(height, width)
    expected[1:8:3, 10:17:3] = patch / math.exp(0.7)  # rows 2, 5, 8 and columns 11, 14, 17, counted from 1
    torch.testing.assert_close(canvas[0, 0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(read_at(reader, canvas, *place)[0, 0], patch, atol=1e-5, rtol=0)
    elsewhere = read_at(reader, canvas, centred(4, width), centred(11, height), *place[2:])
    assert elsewhere.abs().max() < 1e-6


def test_a_window_that_moves_with_the_image_reads_the_same():
    images = torch.zeros(2, 3, 20, 24)
    images[:, :, 5:11, 6:12] = torch.randn(2, 3, 6, 6)
    reader = Reader(3, 20, 24, 5, 3)
    shape = (0.1, math.log(2 * 2 / 23), -0.3)  # variance, a stride of 2, intensity
    here = read_at(reader, images, centred(9, 24), centred(8, 20), *shape)
    moved = read_at(reader, images.roll((4, 7), (2, 3)), centred(16, 24), centred(12, 20), *shape)
    torch.testing.assert_close(moved, here, atol=1e-7, rtol=0)
    still = read_at(reader, images, centred(16, 24), centred(12, 20), *shape)
    assert (still - here).abs().max() > 0.1
    for channel in range(3):  # colour: the same filters for each channel
        alone = read_at(Reader(1, 20, 24, 5, 3), images[:, [channel]], centred(9, 24), centred(8, 20), *shape)
        torch.testing.assert_close(alone, here[:, [channel]])


def test_lstm_cell_is_that_of_torch():
    cell, reference = LSTMCell(3, 4), nn.LSTMCell(3, 4)
    u, h, c = torch.randn(5, 3), torch.randn(5, 4), torch.randn(5, 4)
    copy_lstm(cell, reference, 3)
    for found, expected in zip(cell(u, h, c), reference(u, (h, c)), strict=True):
        torch.testing.assert_close(found, expected)
    assert (cell.gates.bias == 0).all()


# -- the posterior against its equations ------------------------------------------------------------------------------


def copy_lstm(cell: LSTMCell, reference: nn.LSTMCell, inputs: int) -> None:
    """Our gates are i, f, o, g; torch's are i, f, g, o."""
    i, f, o, g = (slice(k * reference.hidden_size, (k + 1) * reference.hidden_size) for k in range(4))
    with torch.no_grad():
        for whole, part in (
            (reference.weight_ih, cell.gates.weight[:, :inputs]),
            (reference.weight_hh, cell.gates.weight[:, inputs:]),
            (reference.bias_ih, cell.gates.bias),
            (reference.bias_hh, torch.zeros_like(cell.gates.bias)),
        ):
            whole.copy_(torch.cat([part[i], part[f], part[g], part[o]]))


def lstm(cell: LSTMCell) -> nn.LSTMCell:
    hidden = cell.gates.out_features // 4
    inputs = cell.gates.in_features - hidden
    reference = nn.LSTMCell(inputs, hidden)
    copy_lstm(cell, reference, inputs)
    return reference


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
        seen = torch.cat([x - model.mean, error], 1)
        if encoder.read.window is not None:
            rows, columns, intensity = (t.squeeze(1) for t in encoder.read.window(h_dec))
            seen = intensity[..., None] * torch.einsum("bih,bchw,bjw->bcij", rows, seen, columns)
        h_enc, s_enc = encode(torch.cat([seen.flatten(1), h_dec, *label], 1), (h_enc, s_enc))
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


# -- gradients --------------------------------------------------------------------------------------------------------


@windows
@likelihoods
@contexts
def test_every_parameter_gets_a_gradient(window, likelihood, context):
    model = draw(window, likelihood, context)
    joint = model.joint(*make_data(model, 4))
    (-elbo_mc(joint, model.infer(joint), 2).surrogate).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-8, name


@attentions
@likelihoods
@contexts
def test_gradients_are_finite_differences(window, likelihood, context):
    model = draw(window, likelihood, context)
    x, c = make_data(model, 3)

    def bound() -> Tensor:
        joint = model.joint(x, c, image_noise(model, range(3)))
        return elbo_mc(joint, model.infer(joint), 2).bound.sum()

    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(bound(), list(named.values()))
    step = 1e-5
    with torch.no_grad():
        for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
            direction, sides = torch.randn_like(parameter), []
            for sign in (1, -2, 1):  # there, across, and back
                parameter.add_(sign * step * direction)
                sides.append(bound())
            expected = (sides[0] - sides[1]) / (2 * step)
            torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-6, msg=name)


@windows
@likelihoods
@contexts
def test_held_lets_gradients_reach_z_alone(window, likelihood, context):
    model = draw(window, likelihood, context)
    q = infer(model)
    z = torch.randn(2, 4, 6).requires_grad_()
    value, held = q.log_prob(z), q.held().log_prob(z)
    torch.testing.assert_close(held, value)
    held.sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(z.grad, torch.autograd.grad(value.sum(), z)[0])
    assert z.grad.abs().max() > 1e-3
    assert not q.held().transform(torch.randn(1, 4, 6))[0].requires_grad


def test_a_held_joint_holds_the_decoder_inside_the_posterior():
    model = draw()
    joint = model.joint(*make_data(model, 4)).held()
    model.infer(joint).transform(torch.randn(2, 4, 6))[0].sum().backward()
    assert all(p.grad is None for p in (*model.decoder.parameters(), *model.likelihood.parameters()))
    for name, parameter in model.inference.named_parameters():
        # log-variances reach z too, and nothing of q is fixed
        assert parameter.grad.abs().max() > 1e-8, name


@attentions
def test_estimators_differ_by_the_score_alone(window):
    # d elbo_mc - d stl = -d log q(held z): an identity for every sample, also where q depends on the decoder.
    model = draw(window)
    x, _ = make_data(model, 4)
    parameters = list(model.parameters())

    def gradient(value: Callable[[], Tensor]) -> list[Tensor]:
        found = torch.autograd.grad(value().sum(), parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    def joint():
        return model.joint(x, noise=image_noise(model, range(4)))

    full, sticking = (
        gradient(lambda e=estimator: e(joint(), model.infer(joint()), 3).surrogate) for estimator in (elbo_mc, stl)
    )
    z = model.infer(joint()).transform(joint().noise("posterior", 3))[0].detach()
    score = gradient(lambda: model.infer(joint()).log_prob(z).mean(0))
    for a, b, s in zip(full, sticking, score, strict=True):
        torch.testing.assert_close(a - b, -s)
    one, single = (gradient(lambda e=e: e(joint(), model.infer(joint()), 1).surrogate) for e in (iwae, elbo_mc))
    for a, b in zip(one, single, strict=True):
        torch.testing.assert_close(a, b)
    assert dreg(joint(), model.infer(joint()), 3).surrogate.isfinite().all()


def test_there_is_no_closed_form():
    model = draw()
    joint = model.joint(*make_data(model, 4))
    with pytest.raises(InputError, match="use estimator=elbo_mc"):
        elbo(joint, model.infer(joint), 1)


@windows
@contexts
def test_a_free_posterior_starts_where_it_was_and_is_its_images_own(window, context):
    model = draw(window, context=context)
    joint = model.joint(*make_data(model, 4))
    q, noise = model.infer(joint), torch.randn(5, 4, 6)
    shifts, build = q.free()
    assert [s.shape for s in shifts] == [(4, 3, 2), (4, 3, 2)]
    for found, expected in zip(build().transform(noise), q.transform(noise), strict=True):
        torch.testing.assert_close(found, expected)
    z, log_q = build().transform(noise)
    bound = (joint.held().log_prob(z) - log_q).mean(0)
    gradients = torch.autograd.grad(bound[2], shifts, retain_graph=True)
    for gradient in gradients:
        assert (gradient[2].abs() > 1e-8).all()
        assert (gradient[[0, 1, 3]] == 0).all()
    bound.sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        for shift in shifts:
            shift.add_(1e-3 * shift.grad)
        z, log_q = build().transform(noise)
        assert ((joint.log_prob(z) - log_q).mean(0) > bound).all()
        torch.testing.assert_close(build().log_prob(z), log_q)
        again, rebuild = build().held().free()
        torch.testing.assert_close(again, shifts)
        torch.testing.assert_close(rebuild().transform(noise)[0], z)


def test_shifts_move_mean_and_log_variance():
    model, noise = draw(steps=1, n=3), torch.randn(1, 4, 3)
    q = infer(model)
    shifts, build = q.free()
    with torch.no_grad():
        shifts[0].fill_(0.3)
        shifts[1].fill_(-0.2)
    z, log_q = q.transform(noise)
    moved, log_moved = build().transform(noise)
    torch.testing.assert_close(moved - q.centre - 0.3, (z - q.centre) * math.exp(-0.1))
    torch.testing.assert_close(log_moved, log_q + 0.3)  # 3 dimensions, half of 0.2 each


# -- the decoder under other posteriors -------------------------------------------------------------------------------


@windows
@likelihoods
def test_the_decoder_can_be_linearised(window, likelihood):
    model = make_model(
        Posterior(partial(Laplace, steps=2, damping="none"), encoder=False), likelihood, network(3, window), d=6
    )
    x, _ = make_data(model, 3)
    joint, mu = model.joint(x), torch.randn(3, 6)
    eta, jacobian = value_and_jacobian(lambda z: joint.decode(z).flatten(1), mu)
    torch.testing.assert_close(eta, joint.decode(mu).flatten(1))
    expected = torch.autograd.functional.jacobian(lambda z: joint.decode(z).flatten(1).sum(0), mu)  # [D, B, d]
    torch.testing.assert_close(jacobian, expected.permute(1, 2, 0))
    q = model.infer(joint)
    elbo_mc(joint, q, 2).surrogate.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    gradient = torch.func.grad(lambda z: joint.log_prob(z[None]).sum())(mu)
    torch.testing.assert_close(joint.linearise(mu).gradient, gradient)


@contexts
def test_only_the_label_that_is_given_counts(context):
    model = draw(context=context)
    x, c = make_data(model, 3)
    z = torch.randn(2, 3, 6)
    if c is None:
        assert model.sample(5).shape == (5, 2, 4, 5)
        return
    moved = c.roll(1, 0)
    assert (model.decoder(z, c) - model.decoder(z, moved)).abs().amax((0, 2, 3, 4)).gt(1e-3).all()
    a, b = (model.infer(model.joint(x, label)).centre[:, :2] for label in (c, moved))
    assert ((a - b).abs().amax(1) > 1e-4).all()  # the first piece: the label reaches the encoder itself
    assert model.sample(3, c).shape == (3, 2, 4, 5)


def test_single_precision_and_no_graph(single_precision):
    model = draw()
    with torch.no_grad():
        q = infer(model)
        z, log_q = q.rsample_with_log_prob((2,))
    assert z.dtype == log_q.dtype == torch.float32
    assert not z.requires_grad
    torch.testing.assert_close(q.log_prob(z), log_q, atol=1e-4, rtol=1e-4)


# -- refused ----------------------------------------------------------------------------------------------------------


def test_parts_that_do_not_fit_are_refused():
    shape = (1, 3, 4)
    encoder = partial(DrawEncoder, shape, hidden=6, read_size=2, decoder_hidden=5)
    decoder = partial(DrawDecoder, 6, shape, steps=3, hidden=5, write_size=2)
    for make in (
        partial(DrawDecoder, 7, shape, steps=3, hidden=5, write_size=2),
        partial(Recurrent, encoder(), 7, steps=3),
    ):
        with pytest.raises(InputError, match=r"model\.latent_dim=7 must be a multiple"):
            make()
    for steps in (0, -1, True, 1.5, None):
        with pytest.raises(InputError, match=r"model\.decoder\.steps"):
            decoder(steps=steps)
    for size in (0, 1, 2.0, True, "3"):
        with pytest.raises(InputError, match=r"model\.decoder\.write_size"):
            decoder(write_size=size)
        with pytest.raises(InputError, match=r"model\.encoder\.read_size"):
            encoder(read_size=size)
    for hidden in (0, [4], 2.0):
        with pytest.raises(InputError, match=r"model\.decoder\.hidden"):
            decoder(hidden=hidden)
        with pytest.raises(InputError, match=r"model\.encoder\.hidden"):
            encoder(hidden=hidden)
        with pytest.raises(InputError, match=r"model\.encoder\.decoder_hidden"):
            encoder(decoder_hidden=hidden)
    for other in (None, NETWORKS["mlp"].encoder(shape)):
        with pytest.raises(InputError, match="model=draw needs network=draw"):
            Recurrent(other, 6, steps=3)
    with pytest.raises(InputError, match="use model=draw"):
        encoder()(torch.zeros(1, *shape))


def test_a_joint_that_does_not_fit_is_refused():
    model = draw(steps=2, n=3)
    joint = model.joint(*make_data(model, 2))
    assert isinstance(model.infer(joint.held()), RecurrentNormal)
    encoder = model.inference.encoder
    with pytest.raises(InputError, match=r"model\.inference\.steps=3 must be model\.decoder\.steps=2"):
        Recurrent(encoder, 6, steps=3)(joint)
    joint.decoder = DrawDecoder(6, (2, 4, 5), steps=2, hidden=7, write_size=None)
    with pytest.raises(InputError, match=r"decoder_hidden=5 must be model\.decoder\.hidden=7"):
        model.infer(joint)
    joint.decoder = held_module(NETWORKS["mlp"].decoder(6, (2, 4, 5)))
    with pytest.raises(InputError, match="model=draw needs network=draw: its decoder cannot be MLPDecoder"):
        model.infer(joint)
    amortised = make_model(
        Posterior(Amortised), network=Network((2, 4, 5), NETWORKS["mlp"].encoder, network(2).decoder), d=6
    )
    assert amortised.infer(amortised.joint(*make_data(amortised, 2))).mean.shape == (2, 6)


# -- the command ------------------------------------------------------------------------------------------------------

TINY = """model=draw model.latent_dim=6 model.decoder.steps=3 model.encoder.hidden=8 model.decoder.hidden=8
model.encoder.read_size=3 model.decoder.write_size=3 trainer.device=cpu trainer.max_steps=3 evaluation.samples=20
evaluation.images=20""".split()  # noqa: SIM905


@pytest.mark.parametrize(
    "words",
    [
        "",
        "model.conditional=true model.conditional_prior=true",
        "data.binarize=dynamic model.likelihood=bernoulli model.encoder.read_size=null model.decoder.write_size=null",
    ],
)
def test_a_run(words, tmp_path, here, command_environment):
    code, _, errors = here(*TINY, *words.split(), f"output_dir={tmp_path}")
    assert code == 0, errors
    result = json.loads(Path(tmp_path, "result.json").read_text())
    assert (result["status"], result["model"]) == ("ok", "draw")
    assert all(math.isfinite(v) for v in result["metrics"].values())
    assert Path(tmp_path, "figures", "samples.png").exists()


def test_the_model_chooses_its_networks_and_its_estimator(here, command_environment):
    code, text, _ = here("model=draw", "--cfg", "job", "--resolve")
    assert code == 0
    for line in ("vaerun.nets.DrawEncoder", "vaerun.nets.DrawDecoder", "vaerun.estimators.elbo_mc", "latent_dim: 100"):
        assert line in text
    assert "decoder_hidden: 256" in text
    for words, line in (
        ("network=mlp", "model=draw needs network=draw: its encoder cannot be MLPEncoder"),
        ("estimator=elbo", "use estimator=elbo_mc"),
        ("model.latent_dim=101", "model.latent_dim=101 must be a multiple of model.decoder.steps=10"),
    ):
        code, _, errors = here("model=draw", words, "trainer.device=cpu")
        assert code != 0
        assert line in errors
        assert len(errors.strip().splitlines()) == 1
