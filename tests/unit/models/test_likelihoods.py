"""Likelihoods against autograd and exact expectations; transforms and splits against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.models.members import LIKELIHOODS, TRANSFORMS, make_model
from support.models.precision import set_precision
from torch import Tensor

from vaerun.data.arrays import Arrays
from vaerun.data.dataset import ImageData, Split
from vaerun.data.transforms import Transform
from vaerun.errors import InputError
from vaerun.models import Bernoulli, Gaussian

SHAPE = (2, 3, 2)
likelihoods = pytest.mark.parametrize("name", LIKELIHOODS)
transforms = pytest.mark.parametrize("mode", TRANSFORMS)


def example(name: str, *leading: int) -> tuple[Tensor, Tensor]:
    """x [4, *SHAPE] and eta [*leading, 4, *SHAPE]."""
    x = torch.randn(4, *SHAPE)
    return (x > 0).to(x.dtype) if name == "bernoulli" else x, 2 * torch.randn(*leading, 4, *SHAPE).requires_grad_()


# -- likelihoods ------------------------------------------------------------------------------------------------------


@likelihoods
@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_log_prob_is_that_of_the_distribution(name, leading):
    likelihood = LIKELIHOODS[name]()
    x, eta = example(name, *leading)
    result = likelihood.log_prob(x, eta)
    assert result.shape == (*leading, 4)
    torch.testing.assert_close(result, likelihood.distribution(eta).log_prob(x.expand_as(eta)))
    torch.testing.assert_close(likelihood.mean(eta), likelihood.distribution(eta).mean)


@likelihoods
def test_score_is_the_gradient(name):
    likelihood = LIKELIHOODS[name]()
    x, eta = example(name, 5)
    (gradient,) = torch.autograd.grad(likelihood.log_prob(x, eta).sum(), eta)
    torch.testing.assert_close(likelihood.score(x, eta), gradient)


@likelihoods
def test_fisher_is_the_variance_of_the_score_and_the_negative_curvature(name):
    likelihood = LIKELIHOODS[name]()
    x, eta = example(name)
    if name == "bernoulli":  # the whole sample space
        nodes = [(torch.zeros_like(eta), 1 - torch.sigmoid(eta)), (torch.ones_like(eta), torch.sigmoid(eta))]
    else:  # two nodes at one standard deviation integrate a quadratic exactly
        s = torch.exp(0.5 * likelihood.log_variance)
        nodes = [(eta - s, torch.tensor(0.5)), (eta + s, torch.tensor(0.5))]
    expected = sum(weight * likelihood.score(node, eta) ** 2 for node, weight in nodes)
    torch.testing.assert_close(likelihood.fisher(eta).expand_as(eta), expected)
    (curvature,) = torch.autograd.grad(likelihood.score(x, eta).sum(), eta)
    torch.testing.assert_close(likelihood.fisher(eta).expand_as(eta), -curvature)  # natural parameter: no x in it


@likelihoods
def test_constant_weight_says_whether_fisher_depends_on_eta(name):
    likelihood = LIKELIHOODS[name]()
    _, eta = example(name)
    same = torch.allclose(likelihood.fisher(eta) * torch.ones_like(eta), likelihood.fisher(eta + 1))
    assert same == likelihood.constant_fisher


def test_gaussian_gradient_of_the_log_variance():
    likelihood = Gaussian(0.3)
    x, eta = example("gaussian", 5)
    assert likelihood.log_variance.item() == pytest.approx(math.log(0.3))
    (gradient,) = torch.autograd.grad(likelihood.log_prob(x, eta).sum(), likelihood.log_variance)
    squared = (x - eta).square().flatten(-3).sum(-1)
    torch.testing.assert_close(gradient, (0.5 * (squared / 0.3 - x[0].numel())).sum())
    torch.testing.assert_close(
        likelihood.log_prob_from_squared_error(squared, x[0].numel()), likelihood.log_prob(x, eta)
    )
    assert not Gaussian(0.3, learned=False).log_variance.requires_grad


@likelihoods
def test_offset_makes_an_untrained_models_output_the_data_mean(name):
    likelihood, mean = LIKELIHOODS[name](), 0.01 + 0.98 * torch.rand(SHAPE)
    torch.testing.assert_close(likelihood.mean(likelihood.output_offset(mean)), mean)
    assert likelihood.output_offset(torch.tensor([0.0, 1.0])).isfinite().all()
    for network in ("mlp", "conv"):
        model = make_model("amortised", name, network, randomise=False)
        torch.testing.assert_close(model.decode_mean(torch.zeros(2, 3)), model.mean.expand(2, *model.image_shape))


# -- transforms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["dequantize", "logit"])
def test_log_det_of_the_random_transforms_is_that_of_the_jacobian(mode):
    # x as a function of u has 1/256 of the derivative with respect to the pixel in [0, 1].
    pixels = torch.tensor([0, 255, 7, 200, 128, 31]).to(torch.uint8).reshape(1, 1, 2, 3)
    u = torch.rand(1, 1, 2, 3)
    jacobian = torch.autograd.functional.jacobian(lambda v: TRANSFORMS[mode](pixels, lambda: v, False)[0], u)
    _, log_det = TRANSFORMS[mode](pixels, lambda: u, False)
    expected = torch.linalg.slogdet(jacobian.reshape(6, 6)).logabsdet + 6 * math.log(256)
    torch.testing.assert_close(log_det, expected.reshape(1), atol=1e-8, rtol=1e-8)
    assert (log_det != 0).all() == (mode == "logit")


def test_log_det_of_the_plain_transform():
    grey = torch.rand(1, 1, 2, 3) * 255
    jacobian = torch.autograd.functional.jacobian(lambda p: Transform()(p, None, False)[0], grey)
    expected = torch.linalg.slogdet(jacobian.reshape(6, 6)).logabsdet + 6 * math.log(255)
    torch.testing.assert_close(Transform()(grey, None, False)[1], expected.reshape(1), atol=1e-10, rtol=0)


@transforms
def test_to_unit_inverts(mode):
    pixels = torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8)
    u = torch.rand(4, *SHAPE)
    x, log_det = TRANSFORMS[mode](pixels, lambda: u, False)
    expected = {"plain": pixels / 255, "dequantize": (pixels + u) / 256, "logit": (pixels + u) / 256}.get(mode, x)
    torch.testing.assert_close(TRANSFORMS[mode].to_unit(x), expected, atol=1e-9, rtol=0)
    assert log_det.shape == (4,)


@transforms
def test_the_extreme_levels_stay_finite_in_float32(mode):
    set_precision(torch.float32)
    pixels = torch.tensor([0, 255]).to(torch.uint8).reshape(2, 1, 1, 1)
    for u in (0.0, 1 - 2**-24):
        x, log_det = TRANSFORMS[mode](pixels, lambda u=u: torch.full((2, 1, 1, 1), u), False)
        assert x.isfinite().all()
        assert log_det.isfinite().all()


@pytest.mark.parametrize("mode", [name for name in TRANSFORMS if name != "logit"])  # it has no closed form
def test_closed_form_moments_are_exact(mode):
    # The 255 midpoints integrate a step at any grey level exactly; two Gauss nodes do so for a parabola.
    pixels = torch.randint(0, 256, (20, *SHAPE), dtype=torch.uint8)
    if mode == "fixed":  # its pixels are drawn before, and are what the moments are of
        pixels = (torch.rand(20, *SHAPE) < pixels / 255).to(torch.uint8) * 255
    unit = pixels / 255
    mean, variance = TRANSFORMS[mode].moments(unit.mean(0), float(unit.var(0, correction=0).mean()))
    nodes = (torch.arange(255) + 0.5) / 255 if mode == "dynamic" else 0.5 + torch.tensor([-1, 1]) / 12**0.5
    noise = [torch.full(pixels.shape, u) for u in nodes.tolist()]
    x = torch.cat([TRANSFORMS[mode](pixels, lambda u=u: u, mode == "fixed")[0] for u in noise])
    torch.testing.assert_close(mean, x.mean(0))
    assert variance == pytest.approx(float(x.var(0, correction=0).mean()), rel=1e-9)


@pytest.mark.parametrize("options", [{"binarize": "typo"}, {"logit": True}, {"binarize": "fixed", "dequantize": True}])
def test_senseless_transforms_are_refused(options):
    with pytest.raises(InputError):
        Transform(**options)


# -- splits -----------------------------------------------------------------------------------------------------------


def make_split(mode: str, n: int = 300) -> Split:
    images = torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8)
    return Split("test", images, torch.arange(n) % 3, 3, TRANSFORMS[mode], False)


@transforms
@pytest.mark.parametrize("sizes", [(7, 300), (256, 1), (300, 255)])
def test_fixed_noise_does_not_depend_on_the_batch_size(mode, sizes):
    split = make_split(mode)
    state = torch.get_rng_state()
    results = [list(split.batches(size)) for size in sizes]
    assert torch.equal(state, torch.get_rng_state())
    for field in ("x", "c", "log_det", "rows"):
        a, b = (torch.cat([getattr(batch, field) for batch in batches]) for batches in results)
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)  # a vectorised logarithm may differ in its last bit
    assert torch.equal(torch.cat([batch.rows for batch in results[0]]), torch.arange(300))
    assert [len(batch.x) for batch in split.batches(4, images=10)] == [4, 4, 2]


def test_fixed_noise_is_each_images_own():
    images = torch.zeros(600, *SHAPE, dtype=torch.uint8)  # more than two blocks of the table of noise
    x = {}
    for name in ("test", "validation"):
        x[name] = Split(name, images, None, 0, TRANSFORMS["dequantize"], False).batch(0, 600).x.flatten(1)
    assert len(torch.cat(list(x.values())).unique(dim=0)) == 1200
    assert abs(x["test"].mean() * 256 - 0.5) < 5 / 12**0.5 / x["test"].numel() ** 0.5


@transforms
def test_training_noise_comes_from_the_global_generator(mode):
    split, rows = make_split(mode), torch.tensor([5, 290, 5, 0])
    torch.manual_seed(1)
    batch, again = split.training_batch(rows), split.training_batch(rows)
    torch.manual_seed(1)
    u = torch.rand(4, *SHAPE, dtype=torch.float32)
    x, log_det = split.transform(split.images[rows], lambda: u, False)
    assert torch.equal(batch.x, x)
    assert torch.equal(batch.log_det, log_det)
    assert torch.equal(batch.rows, rows)
    assert torch.equal(batch.c.argmax(1), rows % 3)
    assert torch.equal(batch.x, again.x) == (mode == "plain")


def make_data(mode: str = "plain", train: int = 50, test: int = 20, **options) -> ImageData:
    """Images that carry their own number in the first pixel; labels are the number modulo 5."""
    images = np.random.RandomState(0).randint(0, 256, (train + test, *SHAPE)).astype(np.uint8)
    images[:, 0, 0, 0] = np.arange(train + test)
    labels = np.arange(train + test) % 5
    arrays = Arrays(images[:train], labels[:train], images[train:], labels[train:], "official")
    return ImageData("numbers", arrays, transform=TRANSFORMS[mode], **{"validation": 10, **options})


def numbers(split: Split) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


def test_binarisation_has_the_right_mean():
    data = make_data("dynamic", train=60, test=200)
    grey = make_data("plain", train=60, test=200)
    assert torch.equal(data.train.images, grey.train.images)  # drawn anew each time
    x = torch.stack([data.train.training_batch(torch.arange(50)).x for _ in range(400)])
    assert set(x.unique().tolist()) == {0.0, 1.0}
    p = grey.train.images / 255
    error = (p * (1 - p) / 400).sqrt().clamp(min=1e-12)
    assert ((x.mean(0) - p).abs() <= 5 * error).all()
    # The test part is drawn once: its mean over all pixels, and the same every time.
    p = grey.test.images / 255
    drawn = next(data.test.batches(200)).x
    assert set(data.test.images.unique().tolist()) == {0, 255}
    assert abs((drawn - p).mean()) < 5 * (p * (1 - p)).sum().sqrt() / p.numel()
    assert torch.equal(data.test.training_batch(torch.arange(200)).x, drawn)
    assert make_data("fixed").binary
    assert data.binary
    assert not grey.binary


@pytest.mark.parametrize("mode", ["dynamic", "fixed"])
def test_binarisation_keeps_black_and_white(mode):
    images = np.zeros((400, *SHAPE), np.uint8)
    images[:, 0] = 255
    data = ImageData("binary", Arrays(images, None, images, None, "official"), validation=0, transform=TRANSFORMS[mode])
    for x in (data.train.training_batch(torch.arange(400)).x, data.test.batch(0, 400).x):
        assert torch.equal(x, torch.from_numpy(images / 255))
    assert (data.classes, data.train.batch(0, 2).c) == (0, None)


@transforms
def test_moments_of_the_training_part(mode):
    data = make_data(mode)
    torch.manual_seed(2)
    draws = 1 if mode in ("plain", "fixed", "logit") else 300
    if mode == "logit":  # no closed form: those of the fixed noise
        x = data.train.batch(0, len(data.train)).x
    else:
        x = torch.cat([data.train.training_batch(torch.arange(len(data.train))).x for _ in range(draws)])
    mean, variance = x.mean(0), float(x.var(0, correction=0).mean())
    tolerance = 1e-6 if draws == 1 else 5 * float(x.std()) / len(x) ** 0.5
    torch.testing.assert_close(data.mean.to(mean), mean, atol=tolerance, rtol=1e-6)
    assert data.variance == pytest.approx(variance, rel=1e-6 if draws == 1 else 2e-2)


def test_splits_are_disjoint_and_complete():
    data = make_data(validation=12)
    train, validation = numbers(data.train), numbers(data.validation)
    assert (len(train), len(validation), numbers(data.test)) == (38, 12, list(range(50, 70)))
    assert sorted(train + validation) == list(range(50))
    for split in (data.train, data.validation, data.test):
        assert split.labels.tolist() == [i % 5 for i in numbers(split)]
    fewer = make_data(validation=12, train_images=9)
    assert numbers(fewer.train) == train[:9]
    assert numbers(fewer.validation) == validation
    assert (data.classes, data.dimensions, data.image_shape) == (5, 12, SHAPE)


@pytest.mark.parametrize(("validation", "expected"), [(0, 0), (0.1, 5), (0.25, 12), (1.0, 1), (49, 49)])
def test_validation_as_number_or_fraction(validation, expected):
    assert len(make_data(validation=validation).validation) == expected


@pytest.mark.parametrize(
    "options",
    [{"validation": v} for v in (-1, 50, 51, 2.5)] + [{"train_images": n} for n in (0, -1, 41)],
)
def test_sizes_out_of_range_are_refused(options):
    with pytest.raises(InputError):
        make_data(**options)


def test_bernoulli_is_finite_far_out():
    x, eta = torch.ones(1, 1, 1, 2), torch.tensor([[[[800.0, -800.0]]]])
    torch.testing.assert_close(Bernoulli().log_prob(x, eta), torch.tensor([-800.0]))
