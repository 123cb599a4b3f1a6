"""Annealed importance sampling against exact likelihoods."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from support.models.annealing import (
    CLOSE,
    QUICK,
    SHORT,
    grid_log_likelihood,
    linear_gaussian,
    make_split,
    noise_of,
)
from support.models.members import exact_marginal, make_data, make_model
from support.models.monitoring import RecordingMonitor
from torch import Tensor

from vaerun.data.transforms import Transform
from vaerun.evaluation.likelihood.annealed import (
    Annealing,
    anneal,
    annealed_importance_sampling,
    bidirectional,
    log_mean_exp,
    sample_prior,
    tune_step_sizes,
)
from vaerun.evaluation.likelihood.hmc import Target, transition, transition_noise
from vaerun.evaluation.likelihood.importance import effective_sample_size

# -- annealed importance sampling -------------------------------------------------------------------------------------


def test_the_schedule_rises_from_0_to_1():
    for temperatures in (1, 2, 7, 500):
        betas = torch.tensor(Annealing(temperatures=temperatures).betas)
        assert len(betas) == temperatures + 1
        assert betas[0] == 0
        assert betas[-1] == 1
        assert (betas.diff() > 0).all()
        torch.testing.assert_close(betas, 1 - betas.flip(0))
    at_quarter = (1 / (1 + math.exp(2)) - 1 / (1 + math.exp(4))) / (1 / (1 + math.exp(-4)) - 1 / (1 + math.exp(4)))
    assert betas[125] == pytest.approx(at_quarter)


def test_one_step_is_importance_sampling_from_the_prior():
    for context in ("plain", "label_prior"):
        model = make_model(context=context)
        x, c = make_data(model, 4)
        joint, noise = model.joint(x, c), noise_of(model, 4)
        annealing = Annealing(temperatures=1, chains=6)
        log_weight, acceptance = anneal(joint, noise, annealing, tune_step_sizes(joint, noise, annealing))
        z, log_prior = joint.prior.transform(noise("forward/start", 6)[..., :3])
        expected = joint.log_prob(z) - log_prior
        torch.testing.assert_close(log_weight, expected.detach(), atol=1e-10, rtol=0)
        assert (acceptance == 1).all()
        split = make_split(model, 4, Transform(dequantize=True, logit=True))
        result = annealed_importance_sampling(model, split, annealing, seed=1)
        assert result.keys() == {"ais", "ais_ess", "ais_acceptance"}
        assert (result["ais"] < split.batch(0, 4).log_det).all()  # of an image of wide range: log|det| is large


def test_the_weight_is_spelled_out():
    model = make_model(context="label_prior")
    x, c = make_data(model, 3)
    joint, noise, annealing = model.joint(x, c), noise_of(model, 3), replace(QUICK, temperatures=4)
    steps = tune_step_sizes(joint, noise, annealing)
    assert steps.shape == (3, 3)
    betas, chains = annealing.betas, annealing.chains
    z_exact, target = torch.randn(3, 3), Target(joint)
    state, log_weight = target(sample_prior(joint, noise, "forward", chains)), torch.zeros(chains, 3)
    for t, numbers in zip((1, 2, 3), transition_noise(noise, "forward", chains, 3), strict=True):
        log_weight += (betas[t] - betas[t - 1]) * state.log_likelihood
        state, _ = transition(target, state, numbers, betas[t], steps[t - 1], 4)
    log_weight += (betas[4] - betas[3]) * state.log_likelihood
    result, _ = anneal(joint, noise, annealing, steps)
    torch.testing.assert_close(result, log_weight, atol=1e-10, rtol=0)
    state, log_weight = target(z_exact.expand(chains, -1, -1)), torch.zeros(chains, 3)
    for t, numbers in zip((3, 2, 1), transition_noise(noise, "reverse", chains, 3), strict=True):
        log_weight += (betas[t + 1] - betas[t]) * state.log_likelihood
        state, _ = transition(target, state, numbers, betas[t], steps[t - 1], 4)
    log_weight += (betas[1] - betas[0]) * state.log_likelihood
    result, _ = anneal(joint, noise, annealing, steps, posterior=z_exact)
    torch.testing.assert_close(result, log_weight, atol=1e-10, rtol=0)


def test_transition_noise_is_fresh_for_every_transition():
    model = make_model()
    drawn = torch.stack(list(transition_noise(noise_of(model, 2), "a", 3, 70)))  # more than two blocks
    assert drawn.shape == (70, 3, 2, 5)
    assert len(drawn.flatten().unique()) == drawn.numel()
    prefix = torch.stack(list(transition_noise(noise_of(model, 2), "a", 3, 40)))
    assert torch.equal(prefix, drawn[:40])


@pytest.mark.parametrize("context", ["plain", "label", "label_prior"])
@pytest.mark.parametrize("transform", [Transform(), Transform(dequantize=True, logit=True)], ids=["plain", "logit"])
def test_it_reaches_the_exact_likelihood(context, transform):
    model = linear_gaussian(context)
    split = make_split(model, 6, transform)
    batch = split.batch(0, 6)
    c = batch.c.double() if model.classes else None
    exact = exact_marginal(model, c, 6).log_prob(batch.x.flatten(1).double()).detach() + batch.log_det
    run = annealed_importance_sampling(model, split, CLOSE, seed=0)
    error = (1 / run["ais_ess"] - 1 / CLOSE.chains).sqrt()  # of log mean w, to first order
    assert (error < 0.1).all()
    assert ((run["ais"] - exact).abs() < 3 * error).all()
    assert ((run["ais_acceptance"] - 0.65).abs() < 0.12).all()
    assert all(value.dtype == torch.float64 and value.shape == (6,) for value in run.values())
    if context == "label_prior":  # the same model with N(0, I) for a prior has another likelihood
        with torch.no_grad():
            model.prior_head.weight.zero_()
        plain = exact_marginal(model, c, 6).log_prob(batch.x.flatten(1).double()).detach() + batch.log_det
        assert ((plain - exact).abs() > 6 * error).any()


@pytest.mark.parametrize("temperatures", [2, 5])
@pytest.mark.parametrize("adapt", [True, False])
def test_the_mean_weight_is_the_likelihood_however_few_the_temperatures(temperatures, adapt):
    # E[w] = p(x) exactly, whatever the step size: many chains, few temperatures.
    model = linear_gaussian("label_prior", d=1)
    with torch.no_grad():
        model.likelihood.log_variance.fill_(1.0)  # a wide likelihood, or so few temperatures have no usable variance
    x, c = make_data(model, 4)
    exact = exact_marginal(model, c, 4).log_prob(x.flatten(1)).detach()
    joint, noise = model.joint(x, c), noise_of(model, 4)
    annealing = Annealing(
        temperatures=temperatures, chains=20_000, leapfrog_steps=3, step_size=0.8, acceptance=0.65, adapt=adapt
    )
    log_weight, acceptance = anneal(joint, noise, annealing, tune_step_sizes(joint, noise, annealing))
    weight = torch.exp(log_weight - exact)
    error = weight.std(0) / 20_000**0.5
    assert (error < 0.02).all()
    assert ((weight.mean(0) - 1).abs() < 4 * error).all()
    assert (log_weight.mean(0) < exact).all()
    assert ((acceptance > 0.2) & (acceptance < 1)).all()


@pytest.mark.parametrize("context", ["plain", "label_prior"])
def test_a_bernoulli_model_reaches_quadrature(context):
    model = make_model(likelihood="bernoulli", context=context, d=1)
    x, c = make_data(model, 5)
    exact = grid_log_likelihood(model, x, c)
    joint, noise = model.joint(x, c), noise_of(model, 5)
    annealing = Annealing(temperatures=40, chains=400, leapfrog_steps=3, acceptance=0.65)
    log_weight, _ = anneal(joint, noise, annealing, tune_step_sizes(joint, noise, annealing))
    weight = torch.exp(log_weight - exact)
    error = weight.std(0) / 20
    assert (error < 0.05).all()
    assert ((weight.mean(0) - 1).abs() < 4 * error).all()


def test_the_pilot_reaches_the_target_acceptance_and_touches_no_other_noise():
    model = make_model(d=3)
    x, _ = make_data(model, 4)
    joint, noise = model.joint(x), noise_of(model, 4)
    for target in (0.5, 0.8):
        for temperatures in (3, 210):
            annealing = Annealing(temperatures=temperatures, chains=64, leapfrog_steps=3, acceptance=target)
            steps = tune_step_sizes(joint, noise, annealing)
            assert steps.shape == (temperatures - 1, 4)
            _, acceptance = anneal(joint, noise, annealing, steps)
            assert ((acceptance - target).abs() < 0.15).all()
            elsewhere = tune_step_sizes(joint, noise, replace(annealing, step_size=3.0))
            assert (elsewhere[-1] / steps[-1] - 1).abs().max() < 0.5  # the search forgets where it began
    fixed = tune_step_sizes(joint, noise, replace(QUICK, adapt=False, step_size=0.37))
    torch.testing.assert_close(fixed, torch.full((39, 4), 0.37))
    seen: set[str] = set()

    def spy(stream: str, k: int) -> Tensor:
        seen.add(stream)
        return noise(stream, k)

    spy.dtype, spy.device = noise.dtype, noise.device
    tune_step_sizes(joint, spy, QUICK)
    pilot, seen = seen, set()
    anneal(joint, spy, QUICK, torch.full((39, 4), 0.1))
    forward, seen = seen, set()
    anneal(joint, spy, QUICK, torch.full((39, 4), 0.1), posterior=torch.zeros(4, 3))
    assert pilot
    assert forward
    assert seen
    assert not (pilot & forward) | (pilot & seen) | (forward & seen)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_neither_batch_nor_company_changes_a_value(likelihood):
    model = make_model(likelihood=likelihood, context="label_prior")
    split = make_split(model, 5, Transform(binarize="fixed") if likelihood == "bernoulli" else None)
    if likelihood == "bernoulli":
        split.images.copy_((split.images > 127) * 255)
        split.binarised = True
    monitor = RecordingMonitor()
    run = partial(annealed_importance_sampling, model, split, SHORT, seed=2)
    expected = run(batch=1, monitor=monitor)
    assert monitor.advanced == [1] * 5
    for batch in (3, None):
        for name, value in run(batch=batch).items():
            torch.testing.assert_close(value, expected[name], atol=1e-8, rtol=0)
    for name, value in run(images=3).items():
        torch.testing.assert_close(value, expected[name][:3], atol=1e-8, rtol=0)
    other = annealed_importance_sampling(model, split, SHORT, seed=3)["ais"]
    assert ((other - expected["ais"]).abs() > 1e-6).all()
    torch.manual_seed(99)
    both = partial(bidirectional, model, SHORT, seed=2)
    expected = both(images=5, batch=2)
    state = torch.random.get_rng_state()
    for name, value in both(images=5).items():
        torch.testing.assert_close(value, expected[name], atol=1e-8, rtol=0)
    for name, value in both(images=3).items():
        torch.testing.assert_close(value, expected[name][:3], atol=1e-8, rtol=0)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("transform", [Transform(), Transform(dequantize=True, logit=True)], ids=["plain", "logit"])
def test_images_by_their_numbers_are_those_of_the_split(transform):
    model = linear_gaussian("label")
    split = make_split(model, 6, transform)
    annealing = replace(CLOSE, temperatures=5)
    every = annealed_importance_sampling(model, split, annealing, seed=0)
    chosen = annealed_importance_sampling(model, split, annealing, seed=0, images=[4, 1], batch=1)
    for name, values in every.items():
        torch.testing.assert_close(chosen[name], values[[4, 1]])


def test_effective_sample_size_and_log_mean_exp():
    log_weight = torch.tensor([[0.0, 0.0, -math.inf], [0.0, -1e3, -math.inf], [0.0, -1e3, -math.inf]]) - 5e3
    torch.testing.assert_close(effective_sample_size(log_weight), torch.tensor([3.0, 1.0, 0.0]))
    torch.testing.assert_close(log_mean_exp(log_weight), torch.tensor([-5e3, -5e3 - math.log(3), -math.inf]))
    weights = torch.rand(9, 4)
    torch.testing.assert_close(effective_sample_size(weights.log()), weights.sum(0) ** 2 / (weights**2).sum(0))
