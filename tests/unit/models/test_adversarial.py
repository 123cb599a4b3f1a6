"""The adversarial model as generator, as one with a moving average, and as a latent-variable model of pixels."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from support.models.adversarial import LATENT, MEMBERS, make_batch, make_model
from torch import Tensor, nn
from torch.distributions import Normal

import vaerun
from vaerun.errors import InputError
from vaerun.models import AdversarialModel, Codes

VARIANCE = 0.03
COMBINATIONS = [
    {"kind": kind, "classes": classes, "codes": codes, "average": average}
    for kind, classes, codes, average in itertools.product(
        ["mlp", "conv"], [0, 3], [None, Codes([3, 2], 1)], [True, False]
    )
]


def labels(model: AdversarialModel, n: int) -> Tensor | None:
    return torch.eye(model.classes)[torch.arange(n) % model.classes] if model.classes else None


def by_hand(model: AdversarialModel, noise: Tensor, generator: nn.Module) -> Tensor:
    """Images [N, C, H, W] in [0, 1] from noise, part by part."""
    z = noise[:, :LATENT]
    if model.codes is not None:
        rest = noise[:, LATENT:]
        parts = [torch.eye(k)[s.argmax(1)] for k, s in zip((3, 2), rest.split([3, 2, 1], 1), strict=False)]
        z = torch.cat([z, *parts, torch.erf(rest[:, 5:] / 2**0.5)], 1)
    return (generator(z, labels(model, len(noise))) + 1) / 2


@pytest.mark.parametrize("options", COMBINATIONS)
def test_generates_within_the_unit_interval(options: dict[str, Any]) -> None:
    model = make_model(**options).eval()
    assert model.noise_dim == LATENT + (6 if model.codes else 0)
    noise = torch.randn(50, model.noise_dim)
    if model.average is not None:
        with torch.no_grad():
            for p in model.average.parameters():
                p.mul_(1.5)
    images = model.generate(noise, labels(model, 50))
    assert images.shape == (50, 1, 16, 16)
    assert 0 <= images.min() < 0.3
    assert 0.7 < images.max() <= 1
    torch.testing.assert_close(images, by_hand(model, noise, model.average or model.generator))
    assert torch.allclose(images, by_hand(model, noise, model.generator)) is (model.average is None)
    torch.manual_seed(5)
    sampled = model.sample(7, labels(model, 7))
    torch.manual_seed(5)
    assert torch.equal(sampled, model.generate(torch.randn(7, model.noise_dim), labels(model, 7)))
    # An unconditional model ignores labels.
    if not model.classes:
        assert torch.equal(model.generate(noise, torch.ones(50, 4)), images)


def test_code_is_set_in_the_generator() -> None:
    model = make_model("conv", codes=Codes([3, 2], 1), average=True).eval()
    noise = torch.randn(4, model.noise_dim)
    modified = noise.clone()
    modified[:, LATENT : LATENT + 3] = torch.tensor([-9.0, -9.0, 9.0])  # value 2 of the first code
    torch.testing.assert_close(model.generate_with_code(noise, 0, torch.full((4,), 2)), model.generate(modified))
    modified = noise.clone()
    modified[:, -1] = torch.special.ndtri(torch.tensor(0.9))
    torch.testing.assert_close(model.generate_with_code(noise, 2, torch.full((4,), 0.8)), model.generate(modified))


def test_average_begins_as_the_generator_and_never_trains() -> None:
    model = AdversarialModel(
        make_model("conv").generator, make_model("conv").discriminator.trunk, latent_dim=3, image_shape=(1, 16, 16)
    )
    assert model.average is None
    assert model.sampler is model.generator
    model = make_model("conv", average=True)
    outer = nn.ModuleList([model])
    for mode in (True, False, True):
        outer.train(mode)
        assert all(m.training is mode for m in model.generator.modules())
        assert not any(m.training for m in model.average.modules())
    assert not any(p.requires_grad for p in model.average.parameters())
    fresh = AdversarialModel(
        model.generator, model.discriminator.trunk, latent_dim=3, image_shape=(1, 16, 16), average=True
    )
    for name, value in fresh.average.state_dict().items():
        assert torch.equal(value, model.generator.state_dict()[name])
        assert value.data_ptr() != model.generator.state_dict()[name].data_ptr()
    # So its images depend on nothing else in the batch, even while the generator trains.
    noise = torch.randn(5, 3)
    torch.testing.assert_close(model.generate(noise)[:2], model.generate(noise[:2]))


@pytest.mark.parametrize("options", COMBINATIONS)
def test_observed_density(options: dict[str, Any]) -> None:
    model = make_model(**options).eval()
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    batch = make_batch(5, classes=3)
    noise = torch.randn(4, 5, model.noise_dim)
    for joint in (
        model.observation_model(VARIANCE).joint(batch.x, batch.c),
        model.joint(batch.x, batch.c, variance=VARIANCE),
    ):
        c = batch.c if model.classes else None
        means = torch.stack([model.generate(row, c) for row in noise])
        expected = Normal(means, VARIANCE**0.5).log_prob(batch.x.to(means)).sum((2, 3, 4))
        torch.testing.assert_close(joint.log_likelihood(noise), expected)
        prior = Normal(0.0, 1.0).log_prob(noise).sum(-1)  # codes too: all randomness is standard normal
        torch.testing.assert_close(joint.log_prob(noise), expected + prior)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    observed = model.observation_model(VARIANCE)
    assert (observed.noise_dim, observed.image_shape) == (model.noise_dim, (1, 16, 16))
    flat = noise[0]
    torch.testing.assert_close(observed.generate(flat, batch.c), model.generate(flat, batch.c))
    # It shares the generator's parameters.
    with torch.no_grad():
        next(model.sampler.parameters()).add_(0.5)
    torch.testing.assert_close(observed.generate(flat, batch.c), model.generate(flat, batch.c))


def test_observed_in_single_precision(single_precision: None) -> None:
    model = make_model("conv", codes=Codes([3], 1)).double().eval()
    batch = make_batch(2)
    noise = torch.randn(3, 2, model.noise_dim, dtype=torch.float64)
    observed = model.observation_model(VARIANCE)
    assert {v.dtype for v in observed.state_dict().values() if v.is_floating_point()} == {torch.float64}
    actual = observed.joint(batch.x.double()).log_likelihood(noise)
    expected = Normal(torch.stack([model.generate(row) for row in noise]), VARIANCE**0.5).log_prob(batch.x.double())
    torch.testing.assert_close(actual, expected.sum((2, 3, 4)), rtol=1e-6, atol=0)


def test_observed_needs_evaluation_mode() -> None:
    model = make_model("conv").train()
    with pytest.raises(InputError, match="generator in evaluation mode"):
        model.observation_model(VARIANCE)
    with pytest.raises(InputError, match="generator in evaluation mode"):
        model.joint(make_batch().x, variance=VARIANCE)
    make_model("conv", average=True).train().observation_model(VARIANCE)  # the average is, always
    make_model("mlp").train().observation_model(VARIANCE)  # nothing there depends on the batch


@pytest.mark.parametrize("member", MEMBERS)
def test_discriminator_sees_pixels_between_minus_one_and_one(member: str) -> None:
    model = make_model(**MEMBERS[member]).eval()
    batch = make_batch(classes=model.classes)
    logits, q = model.discriminator(2 * batch.x - 1, batch.c)
    assert logits.shape == (6,)
    assert (q is None) is (model.codes is None)
    if model.codes is not None:
        assert q.shape == (6, model.codes.parameters)
    last = model.feature_maps(batch.x, batch.c)[-1].flatten(1)
    torch.testing.assert_close(model.discriminator.head(last).squeeze(1), logits)


def test_importance_sampling_is_refused() -> None:
    with pytest.raises(InputError, match="importance sampling needs a posterior"):
        vaerun.log_likelihood(make_model(), torch.zeros(1, 1, 8, 8))


def test_joint_takes_the_variance_that_is_given_or_the_model_s_own() -> None:
    model, x = make_model().eval(), torch.rand(2, 1, 16, 16)
    noise = torch.randn(3, 2, model.noise_dim)
    with pytest.raises(InputError, match="needs a variance"):
        model.joint(x)
    model.variance = 0.04
    expected = model.observation_model(0.04).joint(x).log_likelihood(noise)
    assert torch.equal(model.joint(x).log_likelihood(noise), expected)
    assert not torch.equal(model.joint(x, variance=0.05).log_likelihood(noise), expected)
