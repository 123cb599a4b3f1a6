"""DRAW's gradients: all of them, exact, and held where they should be."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from support.models.draw import WINDOWS, draw, infer
from support.models.members import CONTEXTS, LIKELIHOODS, image_noise, make_data
from torch import Tensor

from vaerun.errors import InputError
from vaerun.estimators import dreg, elbo, elbo_mc, iwae, stl

windows = pytest.mark.parametrize("window", WINDOWS)
attentions = pytest.mark.parametrize("window", ["plain", "attention"])
likelihoods = pytest.mark.parametrize("likelihood", LIKELIHOODS)
contexts = pytest.mark.parametrize("context", CONTEXTS)


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
    value, detached = q.log_prob(z), q.detach().log_prob(z)
    torch.testing.assert_close(detached, value)
    detached.sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(z.grad, torch.autograd.grad(value.sum(), z)[0])
    assert z.grad.abs().max() > 1e-3
    assert not q.detach().transform(torch.randn(1, 4, 6))[0].requires_grad


def test_a_held_joint_holds_the_decoder_inside_the_posterior():
    model = draw()
    joint = model.joint(*make_data(model, 4)).detach()
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
        result = torch.autograd.grad(value().sum(), parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, result, strict=True)]

    def joint():
        return model.joint(x, noise=image_noise(model, range(4)))

    full, sticking = (
        gradient(lambda e=estimator: e(joint(), model.infer(joint()), 3).surrogate) for estimator in (elbo_mc, stl)
    )
    z = model.infer(joint()).transform(joint().noise("posterior", 3))[0].detach()
    score = gradient(lambda: model.infer(joint()).log_prob(z).mean(0))
    for a, b, s in zip(full, sticking, score, strict=True):
        torch.testing.assert_close(a - b, -s)
    multi, single = (gradient(lambda e=e: e(joint(), model.infer(joint()), 1).surrogate) for e in (iwae, elbo_mc))
    for a, b in zip(multi, single, strict=True):
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
    shifts, build = q.local_parameters()
    assert [s.shape for s in shifts] == [(4, 3, 2), (4, 3, 2)]
    for actual, expected in zip(build().transform(noise), q.transform(noise), strict=True):
        torch.testing.assert_close(actual, expected)
    z, log_q = build().transform(noise)
    bound = (joint.detach().log_prob(z) - log_q).mean(0)
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
        again, rebuild = build().detach().local_parameters()
        torch.testing.assert_close(again, shifts)
        torch.testing.assert_close(rebuild().transform(noise)[0], z)


def test_shifts_move_mean_and_log_variance():
    model, noise = draw(steps=1, n=3), torch.randn(1, 4, 3)
    q = infer(model)
    shifts, build = q.local_parameters()
    with torch.no_grad():
        shifts[0].fill_(0.3)
        shifts[1].fill_(-0.2)
    z, log_q = q.transform(noise)
    moved, log_moved = build().transform(noise)
    torch.testing.assert_close(moved - q.centre - 0.3, (z - q.centre) * math.exp(-0.1))
    torch.testing.assert_close(log_moved, log_q + 0.3)  # 3 dimensions, half of 0.2 each
