"""Adversarial losses and the R1 penalty against closed forms and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.models.adversarial import make_batch, make_model, make_objective
from torch.nn import functional as F

from vaerun.errors import InputError
from vaerun.estimators import Minimax, NonSaturating
from vaerun.models import Codes
from vaerun.objectives import Adversarial

LOGITS = torch.tensor([-800.0, -40.0, -3.0, -0.1, 0.0, 0.7, 5.0, 40.0, 800.0], dtype=torch.float64)
LINEAR = 1e-10  # relative: torch takes softplus(x) for x from 20 on, which leaves out exp(-20) / 20


def minus_log_sigmoid(logits: torch.Tensor) -> torch.Tensor:
    """-log(1 / (1 + exp(-l))) without overflow, by numpy."""
    values = logits.numpy()
    return torch.as_tensor(np.maximum(-values, 0) + np.log1p(np.exp(-np.abs(values))))


def test_values_for_extreme_logits() -> None:
    for estimator in (NonSaturating(), Minimax()):
        real, fake = torch.meshgrid(LOGITS, LOGITS, indexing="ij")
        real, fake = real.flatten(), fake.flatten()
        expected = minus_log_sigmoid(real) + minus_log_sigmoid(-fake)
        torch.testing.assert_close(estimator.discriminator(real, fake), expected, rtol=LINEAR, atol=0)
    torch.testing.assert_close(NonSaturating().generator(LOGITS), minus_log_sigmoid(LOGITS), rtol=LINEAR, atol=0)
    torch.testing.assert_close(Minimax().generator(LOGITS), -minus_log_sigmoid(-LOGITS), rtol=LINEAR, atol=0)
    # Where the naive formula still works it is the same.
    naive = -torch.log(torch.sigmoid(LOGITS[2:7])), torch.log(1 - torch.sigmoid(LOGITS[2:7]))
    torch.testing.assert_close((NonSaturating().generator(LOGITS[2:7]), Minimax().generator(LOGITS[2:7])), naive)


def test_generator_gradients_in_closed_form() -> None:
    d = torch.sigmoid(LOGITS)
    for estimator, expected in ((Minimax(), -d), (NonSaturating(), -torch.sigmoid(-LOGITS))):
        logits = LOGITS.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(estimator.generator(logits).sum(), logits)
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.49])
@pytest.mark.parametrize("family", [NonSaturating, Minimax])
def test_smoothing_is_cross_entropy_with_that_target(
    family: type[NonSaturating] | type[Minimax], smoothing: float
) -> None:
    real, fake = torch.randn(2, 50) * 5
    bce = F.binary_cross_entropy_with_logits
    expected = bce(real, torch.full_like(real, 1 - smoothing), reduction="none")
    expected = expected + bce(fake, torch.zeros_like(fake), reduction="none")  # one-sided: generated ones keep 0
    torch.testing.assert_close(family(label_smoothing=smoothing).discriminator(real, fake), expected)
    torch.testing.assert_close(family(label_smoothing=smoothing).generator(fake), family().generator(fake))


def test_smoothed_optimum() -> None:
    """Where p real and q generated images lie, (1 - s) p / (p + q) is where the loss has no slope."""
    p, q = torch.rand(2, 20)
    d = 0.8 * p / (p + q)
    logits = torch.logit(d).requires_grad_()
    none = torch.tensor(-math.inf)  # adds nothing: softplus(-inf) = 0
    estimator = NonSaturating(label_smoothing=0.2)
    generated = F.softplus(none)
    assert generated == 0
    loss = p * estimator.discriminator(logits, none) + q * F.softplus(logits)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros(20))


@pytest.mark.parametrize("smoothing", [-0.1, 0.5, 1.0, math.nan])
def test_smoothing_out_of_range_is_refused(smoothing: float) -> None:
    with pytest.raises(InputError, match=r"label_smoothing must be at least 0 and below 0\.5"):
        NonSaturating(label_smoothing=smoothing)


R1_MODELS = {
    "mlp": {"classes": 3},
    "spectral": {"spectral_norm": True},
    "conv": {"kind": "conv", "batch_norm": False, "classes": 3},
    "codes": {"codes": Codes([3], 1)},
}


@pytest.mark.parametrize("member", R1_MODELS)
def test_r1_is_the_gradient_norm_of_each_image(member: str) -> None:
    model = make_model(**R1_MODELS[member]).eval()  # so that the spectral norm is the same in every call
    batch = make_batch(classes=model.classes)
    noise = torch.randn(6, model.noise_dim)
    without = make_objective(model).discriminator_loss(batch.x, batch.c, noise)[0]
    loss, metrics = make_objective(model, r1=7.0).discriminator_loss(batch.x, batch.c, noise)
    expected = []
    for i in range(6):  # alone, pixels in [-1, 1]
        pixels = (2 * batch.x[i : i + 1] - 1).requires_grad_()
        c = None if batch.c is None else batch.c[i : i + 1]
        (gradient,) = torch.autograd.grad(model.discriminator(pixels, c)[0].sum(), pixels)
        expected.append(gradient.square().sum())
    assert min(expected) > 1e-3
    torch.testing.assert_close(metrics["r1"], torch.stack(expected))
    torch.testing.assert_close(loss - without, 3.5 * torch.stack(expected))
    with torch.no_grad():  # if only the value is needed
        torch.testing.assert_close(make_objective(model, r1=7.0).discriminator_loss(batch.x, batch.c, noise)[0], loss)
    assert not batch.x.requires_grad


@pytest.mark.parametrize("member", R1_MODELS)
def test_r1_reaches_the_parameters(member: str) -> None:
    """Its gradient along a random direction, by central differences."""
    model = make_model(**R1_MODELS[member]).eval()
    batch, noise = make_batch(classes=model.classes), torch.randn(6, model.noise_dim)

    def penalty() -> torch.Tensor:
        values = [make_objective(model, r1=g).discriminator_loss(batch.x, batch.c, noise)[0] for g in (2.0, 0.0)]
        return (values[0] - values[1]).mean()

    group = [p for n, p in model.discriminator.named_parameters() if not n.startswith("q.")]
    gradients = torch.autograd.grad(penalty(), group, allow_unused=True)
    directions = [torch.randn_like(p) for p in group]
    expected, h = [], 1e-6
    for sign in (1, -2, 1):  # the last restores the parameters
        with torch.no_grad():
            for p, d in zip(group, directions, strict=True):
                p.add_(sign * h * d)
        expected.append(penalty().detach())
    slope = (expected[0] - expected[1]) / (2 * h)
    actual = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None)
    assert abs(slope) > 1e-3
    torch.testing.assert_close(actual, slope, rtol=1e-5, atol=0)


def test_r1_with_batch_norm_is_refused() -> None:
    with pytest.raises(InputError, match=r"estimator\.r1.*model\.discriminator\.batch_norm=false"):
        Adversarial(make_model("conv"), Minimax(), r1=1.0)
    Adversarial(make_model("conv", shape=(1, 8, 8)), Minimax(), r1=1.0)  # its only layer is the first: never normalised
    Adversarial(make_model("conv"), Minimax(), r1=0.0)
