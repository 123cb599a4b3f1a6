"""Bidirectional Monte Carlo: the bracket holds the exact likelihood; what callers of both rely on."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from support.models.annealing import (
    QUICK,
    linear_gaussian,
    make_split,
    noise_of,
    standard_error,
    tempered,
)
from support.models.members import exact_marginal, make_data, make_model
from support.models.precision import set_precision
from torch import Tensor

from vaerun.errors import InputError, Interrupted
from vaerun.evaluation.likelihood.annealed import (
    Annealing,
    anneal,
    annealed_importance_sampling,
    annealing_noise,
    bidirectional,
    simulate,
    tune_step_sizes,
)
from vaerun.models import LatentModel
from vaerun.signals import ShutdownSignal
from vaerun.tracking.monitor import Monitor

# -- bidirectional Monte Carlo ----------------------------------------------------------------------------------------


def exact_of_simulated(model: LatentModel, images: int, seed: int) -> Tensor:
    x, _, c = simulate(model, list(range(images)), seed)
    return exact_marginal(model, c, images).log_prob(x.flatten(1)).detach()


@pytest.mark.parametrize("context", ["plain", "label_prior"])
def test_what_is_simulated_follows_the_model(context):
    model = linear_gaussian(context)
    n = 3000
    x, z, c = simulate(model, list(range(n)), 0)
    assert (c is None) == (context == "plain")
    prior, joint = model.prior(c), model.joint(x, c)
    u = z if prior is None else (z - prior.mean) / prior.variance.sqrt()
    residual = (x - joint.decode(z)) / (0.5 * model.likelihood.log_variance).exp()
    for white in (u.detach(), residual.detach().flatten(1)):
        assert (white.mean(0).abs() < 4.5 / n**0.5).all()
        assert ((white.square().mean(0) - 1).abs() < 4.5 * (2 / n) ** 0.5).all()
    assert torch.corrcoef(torch.cat([u, residual.flatten(1)], 1).detach().mT).triu(1).abs().max() < 5 / n**0.5
    if c is not None:
        assert torch.equal(c.argmax(1), torch.arange(n) % 3)
    binary = make_model(likelihood="bernoulli", context=context)
    x, z, c = simulate(binary, list(range(n)), 0)
    p = torch.sigmoid(binary.joint(x, c).decode(z)).detach()
    assert ((x == 0) | (x == 1)).all()
    assert ((x - p).mean(0).abs() < 4.5 * (p * (1 - p)).mean(0).sqrt() / n**0.5).all()


@pytest.mark.parametrize("context", ["plain", "label_prior"])
def test_the_bracket_holds_the_exact_likelihood_and_shrinks(context):
    model = linear_gaussian(context)
    images = 60
    exact = exact_of_simulated(model, images, 7)
    gaps = []
    for temperatures in (2, 15, 200):
        annealing = Annealing(temperatures=temperatures, chains=8, leapfrog_steps=4, acceptance=0.65)
        result = bidirectional(model, annealing, images=images, seed=7)
        assert result.keys() == {"bdmc_lower", "bdmc_upper", "bdmc_acceptance_forward", "bdmc_acceptance_reverse"}
        lower, upper = exact - result["bdmc_lower"], result["bdmc_upper"] - exact
        assert lower.mean() > -3 * standard_error(lower)
        assert upper.mean() > -3 * standard_error(upper)
        gaps.append((float(lower.mean()), float(upper.mean())))
    for direction in ("forward", "reverse"):
        assert abs(result[f"bdmc_acceptance_{direction}"].mean() - 0.65) < 0.1
    for wide, narrow in pairwise(gaps):
        assert wide[0] > 2 * narrow[0]
        assert wide[1] > 2 * narrow[1]
    assert min(gaps[0]) > 0.15  # with so few temperatures either bound is loose
    assert max(map(abs, gaps[2])) < 0.1


@pytest.mark.parametrize("temperatures", [1, 2, 6])
def test_the_mean_inverse_weight_is_the_inverse_likelihood(temperatures):
    # E[1/w] = 1/p(x) with posterior samples, here many exact ones of each image.
    model = linear_gaussian("label_prior", d=1)
    with torch.no_grad():
        model.likelihood.log_variance.fill_(2.5)
    x, c = make_data(model, 4)
    exact = exact_marginal(model, c, 4).log_prob(x.flatten(1)).detach()
    n = 5000
    many, labels = x.repeat(n, 1, 1, 1), c.repeat(n, 1)
    z = tempered(model, x, c, 1.0).sample((n,)).flatten(0, 1)
    annealing = Annealing(temperatures=temperatures, chains=1, leapfrog_steps=3, acceptance=0.65)
    joint, few = model.joint(many, labels), model.joint(x, c)
    steps = tune_step_sizes(few, noise_of(model, 4), annealing).repeat(1, n)  # of x alone: not of the posterior samples
    log_weight, _ = anneal(joint, noise_of(model, 4 * n), annealing, steps, posterior=z)
    inverse = torch.exp(exact - log_weight.view(n, 4))
    error = inverse.std(0) / n**0.5
    assert (error < 0.05).all()
    assert ((inverse.mean(0) - 1).abs() < 4 * error).all()


def test_the_upper_bound_averages_inverse_weights():
    # -log mean 1/w, not mean log w nor log mean w: from one posterior sample all three are spelled out.
    model = make_model()
    annealing = replace(QUICK, temperatures=3)
    result = bidirectional(model, annealing, images=5, seed=1)
    x, z, c = simulate(model, list(range(5)), 1)
    joint = model.joint(x, c)
    values = {}
    for chains in (1, 8):
        values[chains] = bidirectional(model, replace(annealing, chains=chains), images=5, seed=1)["bdmc_upper"]
    torch.testing.assert_close(values[8], result["bdmc_upper"])
    assert (values[1] != values[8]).all()
    noise = annealing_noise(model, 1, list(range(5)))
    log_weight, _ = anneal(joint, noise, annealing, tune_step_sizes(joint, noise, annealing), posterior=z)
    upper = -torch.log(torch.exp(-log_weight).mean(0))
    torch.testing.assert_close(result["bdmc_upper"], upper, atol=1e-9, rtol=0)
    assert (upper < log_weight.mean(0)).all()  # tighter than the mean of log w


# -- what callers rely on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "temperatures": (0, -1, 2.5, True, None),
        "chains": (0, 1.0),
        "leapfrog_steps": (0, "10"),
        "step_size": (0, -0.1, math.inf, math.nan, "0.1", True),
        "acceptance": (0, 1, 1.5, math.nan),
        "adapt": (1, "yes", None),
    }.items(),
)
def test_settings_out_of_range_are_named(key, values):
    for value in values:
        with pytest.raises(InputError, match=rf"evaluation\.annealing\.{key} must be"):
            Annealing(**{key: value})


def test_sizes_are_checked_and_a_stop_is_obeyed():
    model = make_model()
    split = make_split(model, 3)
    for bad in (0, -2, 1.5):
        with pytest.raises(InputError, match="images"):
            bidirectional(model, QUICK, images=bad, seed=0)
        with pytest.raises(InputError, match="images"):
            annealed_importance_sampling(model, split, QUICK, seed=0, images=bad)
        with pytest.raises(InputError, match="batch"):
            annealed_importance_sampling(model, split, QUICK, seed=0, batch=bad)
    stop = ShutdownSignal()
    stop.signum = 2
    with pytest.raises(Interrupted):
        annealed_importance_sampling(model, split, QUICK, seed=0, monitor=Monitor(stop))
    with pytest.raises(Interrupted):
        bidirectional(model, replace(QUICK, adapt=False), images=2, seed=0, monitor=Monitor(stop))


def test_single_precision_agrees(single_precision):
    set_precision(torch.float64)
    exact = linear_gaussian("label_prior")
    set_precision(torch.float32)
    model = linear_gaussian("label_prior")
    model.load_state_dict(exact.state_dict())
    result = bidirectional(model, replace(QUICK, temperatures=150, chains=16), images=30, seed=0)
    x, _, c = simulate(model, list(range(30)), 0)
    set_precision(torch.float64)
    truth = exact_marginal(exact, c.double(), 30).log_prob(x.double().flatten(1)).detach()
    for bound in ("bdmc_lower", "bdmc_upper"):
        assert result[bound].dtype == torch.float64
        assert (result[bound] - truth).abs().mean() < 0.2
