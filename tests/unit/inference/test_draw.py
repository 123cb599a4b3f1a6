"""DRAW: windows of filters, the decoder under other posteriors, rejected options, and the command."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from support.models.draw import WINDOWS, copy_lstm, draw, infer, network
from support.models.members import CONTEXTS, LIKELIHOODS, NETWORKS, Network, Posterior, make_data, make_model
from support.runs.commands import FAST_AMIS
from torch import Tensor, nn

from vaerun.distributions import RecurrentNormal, detached_module
from vaerun.errors import InputError
from vaerun.estimators import elbo_mc
from vaerun.inference import Amortised, Laplace, Recurrent
from vaerun.models.joint import AutodiffLinearMap
from vaerun.nets import DrawDecoder, DrawEncoder
from vaerun.nets.draw import LSTMCell, Reader, Window, Writer, filterbank

windows = pytest.mark.parametrize("window", WINDOWS)
attentions = pytest.mark.parametrize("window", ["plain", "attention"])
likelihoods = pytest.mark.parametrize("likelihood", LIKELIHOODS)
contexts = pytest.mark.parametrize("context", CONTEXTS)


# -- filters and windows ----------------------------------------------------------------------------------------------


def test_filters_are_those_of_the_paper():
    centre, stride, log_variance = torch.tensor([2.3, -4.0]), torch.tensor([0.7, 2.0]), torch.tensor([-0.4, 1.1])
    result = filterbank(centre, stride, log_variance, 4, 6)
    assert result.shape == (2, 4, 6)
    for b in range(2):
        for i in range(1, 5):
            mu = centre[b] + (i - 4 / 2 - 0.5) * stride[b]
            row = [math.exp(-((a - mu) ** 2) / (2 * log_variance[b].exp())) for a in range(1, 7)]
            torch.testing.assert_close(result[b, i - 1], torch.tensor(row) / sum(row))


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
    """Place the window there for any state."""
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
    for actual, coordinates, length in ((rows, y, height), (columns, x, width)):
        expected = filterbank((length + 1) / 2 * (coordinates + 1), stride, log_variance, 4, length)
        torch.testing.assert_close(actual.squeeze(-3), expected)
    torch.testing.assert_close(intensity.flatten(), log_intensity.exp().flatten())


def test_a_window_at_rest_spans_the_image():
    window = Window(5, 3, 9, 17)
    placed(window, 0, 0, -6, 0, 0)  # sharp
    rows, columns, _ = window(torch.zeros(1, 5))
    assert columns.squeeze().argmax(-1).tolist() == [0, 8, 16]
    assert rows.squeeze().argmax(-1)[1] == 4


def read_at(reader: Reader, images: Tensor, *coordinates: float) -> Tensor:
    placed(reader.window, *coordinates)
    return reader(images, torch.zeros(len(images), 5)).unflatten(-1, (images.shape[1], 3, 3))


def centred(pixel: float, length: int) -> float:
    """The coordinate that puts a window's centre on that pixel (1..length)."""
    return 2 * pixel / (length + 1) - 1


def test_what_is_written_lies_where_the_window_is_and_is_read_back_there():
    height, width = 15, 21
    reader, writer = Reader(1, height, width, 5, 3), Writer((1, height, width), 5, 3)
    coordinates = (centred(14, width), centred(5, height), -4.0, math.log(3 * 2 / 20), 0.7)  # sharp, a stride of 3
    placed(writer.window, *coordinates)
    with torch.no_grad():
        writer.patch.weight.zero_()
    patch = writer.patch.bias.requires_grad_(False).copy_(torch.arange(1.0, 10)).reshape(3, 3)
    canvas = writer(torch.zeros(1, 5))
    assert canvas.shape == (1, 1, height, width)
    expected = torch.zeros(height, width)
    expected[1:8:3, 10:17:3] = patch / math.exp(0.7)  # rows 2, 5, 8 and columns 11, 14, 17, counted from 1
    torch.testing.assert_close(canvas[0, 0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(read_at(reader, canvas, *coordinates)[0, 0], patch, atol=1e-5, rtol=0)
    elsewhere = read_at(reader, canvas, centred(4, width), centred(11, height), *coordinates[2:])
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
    for actual, expected in zip(cell(u, h, c), reference(u, (h, c)), strict=True):
        torch.testing.assert_close(actual, expected)
    assert (cell.gates.bias == 0).all()


# -- the decoder under other posteriors -------------------------------------------------------------------------------


@windows
@likelihoods
def test_the_decoder_can_be_linearised(window, likelihood):
    model = make_model(
        Posterior(partial(Laplace, steps=2, damping="none"), encoder=False), likelihood, network(3, window), d=6
    )
    x, _ = make_data(model, 3)
    joint, mu = model.joint(x), torch.randn(3, 6)
    linear_map = AutodiffLinearMap(lambda z: joint.decode(z).flatten(1), mu)
    eta, jacobian = linear_map.value, linear_map.jacobian()
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


# -- rejected options -------------------------------------------------------------------------------------------------


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
    assert isinstance(model.infer(joint.detach()), RecurrentNormal)
    encoder = model.inference.encoder
    with pytest.raises(InputError, match=r"model\.inference\.steps=3 must be model\.decoder\.steps=2"):
        Recurrent(encoder, 6, steps=3)(joint)
    joint.decoder = DrawDecoder(6, (2, 4, 5), steps=2, hidden=7, write_size=None)
    with pytest.raises(InputError, match=r"decoder_hidden=5 must be model\.decoder\.hidden=7"):
        model.infer(joint)
    joint.decoder = detached_module(NETWORKS["mlp"].decoder(6, (2, 4, 5)))
    with pytest.raises(InputError, match="model=draw needs network=draw: MLPDecoder is not a DRAW decoder"):
        model.infer(joint)
    amortised = make_model(
        Posterior(Amortised), network=Network((2, 4, 5), NETWORKS["mlp"].encoder, network(2).decoder), d=6
    )
    assert amortised.infer(amortised.joint(*make_data(amortised, 2))).mean.shape == (2, 6)


# -- the command ------------------------------------------------------------------------------------------------------

TINY = """model=draw model.latent_dim=6 model.decoder.steps=3 model.encoder.hidden=8 model.decoder.hidden=8
model.encoder.read_size=3 model.decoder.write_size=3 trainer.device=cpu trainer.max_steps=3 evaluation.samples=20
evaluation.images=20""".split()  # noqa: SIM905
TINY += FAST_AMIS


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
        ("network=mlp", "model=draw needs network=draw: MLPEncoder is not a DRAW encoder"),
        ("estimator=elbo", "use estimator=elbo_mc"),
        ("model.latent_dim=101", "model.latent_dim=101 must be a multiple of model.decoder.steps=10"),
    ):
        code, _, errors = here("model=draw", words, "trainer.device=cpu")
        assert code != 0
        assert line in errors
        assert len(errors.strip().splitlines()) == 1
