"""HMC, annealed importance sampling and bidirectional Monte Carlo against exact likelihoods."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from members import exact_marginal, make_data, make_model
from torch import Tensor
from torch.distributions import MultivariateNormal

from vaerun.data.dataset import Split
from vaerun.data.transforms import Transform
from vaerun.errors import InputError, Interrupted
from vaerun.evaluation.annealed import (
    Annealing,
    anneal,
    annealed_importance_sampling,
    annealing_noise,
    bidirectional,
    effective_chains,
    log_mean_exp,
    prior_sample,
    simulate,
    tune,
)
from vaerun.evaluation.hmc import LOG_UNIFORM, Target, leapfrog, transition, transition_noise
from vaerun.models import LatentModel
from vaerun.randomness import ImageNoise
from vaerun.training.signals import Stop

QUICK = Annealing(temperatures=40, chains=8, leapfrog_steps=4)
SHORT = Annealing(temperatures=12, chains=4, leapfrog_steps=2)  # short enough for rounding to stay what it is
CLOSE = Annealing(temperatures=80, chains=500, leapfrog_steps=3)


def make_split(model: LatentModel, n: int, transform: Transform | None = None) -> Split:
    images = torch.randint(0, 256, (n, *model.image_shape), generator=torch.Generator().manual_seed(4))
    return Split("test", images.to(torch.uint8), torch.arange(n) % 3, 3, transform or Transform(), False)


def noise_of(model: LatentModel, n: int, seed: int = 5) -> ImageNoise:
    return ImageNoise(seed, range(n), model.latent_dim + LOG_UNIFORM, model.mean)


def linear_gaussian(context: str = "plain", d: int = 2, prior: float = 0.5) -> LatentModel:
    """With a prior that depends on the label clearly, where the context has one."""
    model = make_model(network="linear", context=context, d=d).eval()
    if model.prior_head is not None:
        with torch.no_grad():
            model.prior_head.weight.normal_(0, prior)
    return model


def tempered(model: LatentModel, x: Tensor, c: Tensor | None, beta: float) -> MultivariateNormal:
    """p(z | c) p(x | z, c)^beta of a linear-Gaussian model, normalised, by its d x d precision."""
    d, prior = model.latent_dim, model.prior(c)
    weight, bias = model.decoder.affine.weight, model.decoder.affine.bias + model.offset.flatten()
    w, s2 = weight[:, :d], model.likelihood.log_variance.exp()
    mean, variance = (torch.zeros(len(x), d), torch.ones(len(x), d)) if prior is None else (prior.mean, prior.variance)
    residual = x.flatten(1) - bias - (0 if c is None else c @ weight[:, d:].mT)
    precision = torch.diag_embed(1 / variance) + beta * w.mT @ w / s2
    moment = mean / variance + beta * residual @ w / s2
    centre = torch.linalg.solve(precision, moment.unsqueeze(-1)).squeeze(-1)
    return MultivariateNormal(centre.detach(), precision_matrix=precision.detach())


def grid_log_likelihood(model: LatentModel, x: Tensor, c: Tensor | None = None) -> Tensor:
    """log p(x | c) [B] by the trapezoid rule over z (d = 1), which converges faster than any power of the spacing."""
    z = torch.linspace(-12, 12, 4001)
    joint = model.joint(x, c)
    with torch.no_grad():
        return torch.logsumexp(joint.log_prob(z[:, None, None].expand(-1, len(x), 1)), 0) + math.log(z[1] - z[0])


def standard_error(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5)


# -- the kernel -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["linear", "mlp", "conv"])
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_the_score_is_the_gradient_and_parameters_get_none(network, likelihood):
    model = make_model(likelihood=likelihood, network=network, context="label_prior")
    x, c = make_data(model, 4)
    z = torch.randn(40, 4, 3, requires_grad=True)
    joint = model.joint(x, c)
    state = Target(joint)(z)
    for beta in (0.0, 0.3, 1.0):
        log_density = joint.prior.log_prob(z) + beta * joint.likelihood.log_prob(x, joint.decode(z))
        (score,) = torch.autograd.grad(log_density.sum(), z)
        torch.testing.assert_close(state.log_density(beta), log_density.detach(), atol=1e-9, rtol=0)
        torch.testing.assert_close(state.score(beta), score, atol=1e-9, rtol=0)
    assert not any(value.requires_grad for value in vars(state).values())
    held = Target(joint).joint
    assert not any(p.requires_grad for p in held.decoder.parameters())
    assert not held.prior.mean.requires_grad
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_leapfrog_is_undone_by_flipping_the_momentum(beta):
    model = make_model(context="label_prior")
    x, c = make_data(model, 4)
    target, step = Target(model.joint(x, c)), torch.tensor([0.02, 0.05, 0.1, 0.2])
    start, momentum = target(torch.randn(6, 4, 3)), torch.randn(6, 4, 3)
    there, end = leapfrog(target, start, momentum, beta, step, 7)
    assert ((there.z - start.z).abs().amax((0, 2)) > step).all()
    back, first = leapfrog(target, there, -end, beta, step, 7)
    torch.testing.assert_close(back.z, start.z, atol=1e-12, rtol=0)
    torch.testing.assert_close(first, -momentum, atol=1e-12, rtol=0)


def test_leapfrog_keeps_energy_to_second_order_and_volume():
    model = make_model(context="label_prior")
    x, c = make_data(model, 3)
    target = Target(model.joint(x, c))
    z, momentum = torch.randn(5, 3, 3), torch.randn(5, 3, 3)

    def run(z: Tensor, momentum: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        state, end = leapfrog(target, target(z), momentum, 0.7, torch.full((3,), 0.4 / steps), steps)
        return state.z, end, -state.log_density(0.7) + 0.5 * end.square().sum(-1)

    before = -target(z).log_density(0.7) + 0.5 * momentum.square().sum(-1)
    errors = [float((run(z, momentum, steps)[2] - before).abs().max()) for steps in (40, 80, 160)]
    assert errors[2] < 0.01
    for coarse, fine in pairwise(errors):
        assert 3.5 < coarse / fine < 4.5
    # |d(z', m') / d(z, m)| = 1 by central differences; no graph runs through a trajectory.
    columns = []
    for i in range(6):
        shift = torch.zeros(2, 1, 3, 3)
        shift[i // 3, ..., i % 3] = 1e-5
        ends = [torch.cat(run(z + s * shift[0], momentum + s * shift[1], 4)[:2], -1) for s in (1, -1)]
        columns.append((ends[0] - ends[1]) / 2e-5)
    log_volume = torch.linalg.slogdet(torch.stack(columns, -1)).logabsdet
    torch.testing.assert_close(log_volume, torch.zeros(5, 3), atol=1e-7, rtol=0)


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("context", ["plain", "label_prior"])
def test_a_transition_leaves_a_gaussian_as_it_is(beta, context):
    model = linear_gaussian(context)
    x, c = make_data(model, 3)
    exact, target, chains = tempered(model, x, c, beta), Target(model.joint(x, c)), 20_000
    scale = exact.covariance_matrix.diagonal(dim1=-2, dim2=-1).min(-1).values.sqrt()
    white = torch.linalg.inv(torch.linalg.cholesky(exact.covariance_matrix))
    start = state = target(exact.sample((chains,)))
    for _ in range(3):  # a step so long that about half is rejected: without the correction the moments would be off
        state, probability = transition(target, state, torch.randn(chains, 3, 4), beta, 1.5 * scale, 2)
    assert ((probability.mean(0) > 0.3) & (probability.mean(0) < 0.97)).all()
    assert ((state.z - start.z).abs().amax(-1) > 0).double().mean() > 0.6
    u = ((state.z - exact.mean).unsqueeze(-2) @ white.mT).squeeze(-2)  # N(0, I)
    assert (u.mean(0).abs() < 4.5 / chains**0.5).all()
    second = torch.einsum("kbi,kbj->bij", u, u) / chains
    assert ((second - torch.eye(2)).abs() < 4.5 * 2**0.5 / chains**0.5).all()
    assert (((u**4).mean(0) - 3).abs() < 4.5 * 96**0.5 / chains**0.5).all()


def test_acceptance_is_decided_by_a_uniform_number():
    model = make_model()
    x, _ = make_data(model, 3)
    target, noise, step = Target(model.joint(x)), torch.randn(4000, 3, 5), torch.full((3,), 0.45)
    state = target(0.5 * torch.randn(4000, 3, 3))
    moved, probability = transition(target, state, noise, 1.0, step, 3)
    proposal, end = leapfrog(target, state, noise[..., :3], 1.0, step, 3)
    change = proposal.log_density(1) - state.log_density(1) + 0.5 * (noise[..., :3] ** 2 - end**2).sum(-1)
    torch.testing.assert_close(probability, change.exp().clamp(max=1), atol=1e-12, rtol=1e-9)
    accepted = (moved.z != state.z).all(-1)
    for name in vars(state):
        row = accepted if getattr(state, name).dim() == 2 else accepted.unsqueeze(-1)
        expected = torch.where(row, getattr(proposal, name), getattr(state, name))
        torch.testing.assert_close(getattr(moved, name), expected, atol=0, rtol=0)
    assert 0.2 < probability.mean() < 0.8
    spread = (probability * (1 - probability)).sum() ** 0.5
    assert abs(accepted.sum() - probability.sum()) < 4 * spread
    uniform = torch.exp(-0.5 * noise[..., 3:].square().sum(-1)).flatten().sort().values
    ranks = torch.linspace(0, 1, uniform.numel())
    assert (uniform - ranks).abs().max() < 2 / uniform.numel() ** 0.5  # Kolmogorov-Smirnov, p below 0.001


class Broken(torch.nn.Module):
    """A decoder that is not finite on one side and overflows far out."""

    affine = None

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return (
            (z[..., :1].add(1).sqrt() + torch.exp(z.square()))
            .unsqueeze(-1)
            .unsqueeze(-1)
            .expand(*z.shape[:-1], 1, 3, 4)
        )


def test_what_is_not_finite_is_never_moved_to():
    model = make_model(d=1)
    model.decoder = Broken()
    x = torch.full((2, 1, 3, 4), 2.0)
    target = Target(model.joint(x))
    z = torch.tensor([0.0, -2.0, 40.0, 1e9, math.inf, math.nan]).reshape(-1, 1, 1).expand(-1, 2, 1)
    state = target(z)
    assert state.log_likelihood[0].isfinite().all()
    assert (state.log_likelihood[1:] == -math.inf).all()
    safe = target(torch.zeros(2000, 2, 1))
    moved, probability = transition(target, safe, 3 * torch.randn(2000, 2, 3), 1.0, torch.tensor([0.5, 1e300]), 3)
    assert (probability[:, 1] == 0).all()
    assert 0 < (probability[:, 0] == 0).sum() < 2000
    assert probability.isfinite().all()
    for value in vars(moved).values():
        assert value.isfinite().all()
    found = annealed_importance_sampling(model, make_split(model, 3), QUICK, seed=0)
    assert all(value.isfinite().all() for value in found.values())
    # A chain that diverges leaves the others alone, though the Gram path expands about the mean over chains.
    model = make_model(network="relu", d=1)
    target = Target(model.joint(x))
    z = torch.randn(200, 2, 1)
    assert target.joint._gram_pays(z)
    alone = target(z).log_likelihood
    z[7] = math.inf
    torch.testing.assert_close(target(z).log_likelihood[:7], alone[:7], atol=1e-9, rtol=0)
    # With no finite likelihood anywhere the estimate is minus infinity and no chain counts.
    with torch.no_grad():
        model.decoder.affine.bias.fill_(math.nan)
    found = annealed_importance_sampling(model, make_split(model, 2), QUICK, seed=0)
    assert (found["ais"] == -math.inf).all()
    assert (found["ais_ess"] == 0).all()


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
        log_weight, acceptance = anneal(joint, noise, annealing, tune(joint, noise, annealing))
        z, log_prior = joint.prior.transform(noise("forward/start", 6)[..., :3])
        expected = joint.log_prob(z) - log_prior
        torch.testing.assert_close(log_weight, expected.detach(), atol=1e-10, rtol=0)
        assert (acceptance == 1).all()
        split = make_split(model, 4, Transform(dequantize=True, logit=True))
        found = annealed_importance_sampling(model, split, annealing, seed=1)
        assert found.keys() == {"ais", "ais_ess", "ais_acceptance"}
        assert (found["ais"] < split.batch(0, 4).log_det).all()  # of an image of wide range: log|det| is large


def test_the_weight_is_spelled_out():
    model = make_model(context="label_prior")
    x, c = make_data(model, 3)
    joint, noise, annealing = model.joint(x, c), noise_of(model, 3), replace(QUICK, temperatures=4)
    steps = tune(joint, noise, annealing)
    assert steps.shape == (3, 3)
    betas, chains = annealing.betas, annealing.chains
    z_exact, target = torch.randn(3, 3), Target(joint)
    state, log_weight = target(prior_sample(joint, noise, "forward", chains)), torch.zeros(chains, 3)
    for t, numbers in zip((1, 2, 3), transition_noise(noise, "forward", chains, 3), strict=True):
        log_weight += (betas[t] - betas[t - 1]) * state.log_likelihood
        state, _ = transition(target, state, numbers, betas[t], steps[t - 1], 4)
    log_weight += (betas[4] - betas[3]) * state.log_likelihood
    found, _ = anneal(joint, noise, annealing, steps)
    torch.testing.assert_close(found, log_weight, atol=1e-10, rtol=0)
    state, log_weight = target(z_exact.expand(chains, -1, -1)), torch.zeros(chains, 3)
    for t, numbers in zip((3, 2, 1), transition_noise(noise, "reverse", chains, 3), strict=True):
        log_weight += (betas[t + 1] - betas[t]) * state.log_likelihood
        state, _ = transition(target, state, numbers, betas[t], steps[t - 1], 4)
    log_weight += (betas[1] - betas[0]) * state.log_likelihood
    found, _ = anneal(joint, noise, annealing, steps, posterior=z_exact)
    torch.testing.assert_close(found, log_weight, atol=1e-10, rtol=0)


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
    annealing = Annealing(temperatures=temperatures, chains=20_000, leapfrog_steps=3, step_size=0.8, adapt=adapt)
    log_weight, acceptance = anneal(joint, noise, annealing, tune(joint, noise, annealing))
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
    annealing = Annealing(temperatures=40, chains=400, leapfrog_steps=3)
    log_weight, _ = anneal(joint, noise, annealing, tune(joint, noise, annealing))
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
            steps = tune(joint, noise, annealing)
            assert steps.shape == (temperatures - 1, 4)
            _, acceptance = anneal(joint, noise, annealing, steps)
            assert ((acceptance - target).abs() < 0.15).all()
            elsewhere = tune(joint, noise, replace(annealing, step_size=3.0))
            assert (elsewhere[-1] / steps[-1] - 1).abs().max() < 0.5  # the search forgets where it began
    fixed = tune(joint, noise, replace(QUICK, adapt=False, step_size=0.37))
    torch.testing.assert_close(fixed, torch.full((39, 4), 0.37))
    seen: set[str] = set()

    def spy(stream: str, k: int) -> Tensor:
        seen.add(stream)
        return noise(stream, k)

    spy.dtype, spy.device = noise.dtype, noise.device
    tune(joint, spy, QUICK)
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
        split.drawn = True
    done: list[int] = []
    run = partial(annealed_importance_sampling, model, split, SHORT, seed=2)
    expected = run(batch=1, progress=done.append)
    assert done == [1] * 5
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


def test_effective_chains_and_log_mean_exp():
    log_weight = torch.tensor([[0.0, 0.0, -math.inf], [0.0, -1e3, -math.inf], [0.0, -1e3, -math.inf]]) - 5e3
    torch.testing.assert_close(effective_chains(log_weight), torch.tensor([3.0, 1.0, 0.0]))
    torch.testing.assert_close(log_mean_exp(log_weight), torch.tensor([-5e3, -5e3 - math.log(3), -math.inf]))
    weights = torch.rand(9, 4)
    torch.testing.assert_close(effective_chains(weights.log()), weights.sum(0) ** 2 / (weights**2).sum(0))


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
        annealing = Annealing(temperatures=temperatures, chains=8, leapfrog_steps=4)
        found = bidirectional(model, annealing, images=images, seed=7)
        assert found.keys() == {"bdmc_lower", "bdmc_upper", "bdmc_acceptance_forward", "bdmc_acceptance_reverse"}
        lower, upper = exact - found["bdmc_lower"], found["bdmc_upper"] - exact
        assert lower.mean() > -3 * standard_error(lower)
        assert upper.mean() > -3 * standard_error(upper)
        gaps.append((float(lower.mean()), float(upper.mean())))
    for direction in ("forward", "reverse"):
        assert abs(found[f"bdmc_acceptance_{direction}"].mean() - 0.65) < 0.1
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
    annealing = Annealing(temperatures=temperatures, chains=1, leapfrog_steps=3)
    joint, few = model.joint(many, labels), model.joint(x, c)
    steps = tune(few, noise_of(model, 4), annealing).repeat(1, n)  # of x alone: not of the posterior samples
    log_weight, _ = anneal(joint, noise_of(model, 4 * n), annealing, steps, posterior=z)
    inverse = torch.exp(exact - log_weight.view(n, 4))
    error = inverse.std(0) / n**0.5
    assert (error < 0.05).all()
    assert ((inverse.mean(0) - 1).abs() < 4 * error).all()


def test_the_upper_bound_averages_inverse_weights():
    # -log mean 1/w, not mean log w nor log mean w: from one posterior sample all three are spelled out.
    model = make_model()
    annealing = replace(QUICK, temperatures=3)
    found = bidirectional(model, annealing, images=5, seed=1)
    x, z, c = simulate(model, list(range(5)), 1)
    joint = model.joint(x, c)
    values = {}
    for chains in (1, 8):
        values[chains] = bidirectional(model, replace(annealing, chains=chains), images=5, seed=1)["bdmc_upper"]
    torch.testing.assert_close(values[8], found["bdmc_upper"])
    assert (values[1] != values[8]).all()
    noise = annealing_noise(model, 1, list(range(5)))
    log_weight, _ = anneal(joint, noise, annealing, tune(joint, noise, annealing), posterior=z)
    upper = -torch.log(torch.exp(-log_weight).mean(0))
    torch.testing.assert_close(found["bdmc_upper"], upper, atol=1e-9, rtol=0)
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
    stop = Stop()
    stop.signum = 2
    with pytest.raises(Interrupted):
        annealed_importance_sampling(model, split, QUICK, seed=0, stop=stop)
    with pytest.raises(Interrupted):
        bidirectional(model, replace(QUICK, adapt=False), images=2, seed=0, stop=stop)


def test_single_precision_agrees(single_precision):
    torch.set_default_dtype(torch.float64)
    exact = linear_gaussian("label_prior")
    torch.set_default_dtype(torch.float32)
    model = linear_gaussian("label_prior")
    model.load_state_dict(exact.state_dict())
    found = bidirectional(model, replace(QUICK, temperatures=150, chains=16), images=30, seed=0)
    x, _, c = simulate(model, list(range(30)), 0)
    torch.set_default_dtype(torch.float64)
    truth = exact_marginal(exact, c.double(), 30).log_prob(x.double().flatten(1)).detach()
    for bound in ("bdmc_lower", "bdmc_upper"):
        assert found[bound].dtype == torch.float64
        assert (found[bound] - truth).abs().mean() < 0.2
