"""Annealing from an adapted proposal: against exact likelihoods, and the transitions against what they leave invariant.

The estimate's standard error, to first order, is sqrt(1 / ESS - 1 / K).
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from support.models.annealing import linear_gaussian, make_split, standard_error, tempered
from support.models.folded import folded, images_at, quadrature
from support.models.members import CONTEXTS, LIKELIHOODS, exact_marginal, make_data, make_model
from torch import Tensor

from vaerun.evaluation.adaptive import adaptation, bridge
from vaerun.evaluation.adaptive.adaptation import Amis, adapt_proposal, initial_mixture
from vaerun.evaluation.adaptive.amis import adaptive_importance_sampling, amis_bracket
from vaerun.evaluation.adaptive.bridge import PILOTS, final_estimate
from vaerun.evaluation.adaptive.estimate import estimate
from vaerun.evaluation.adaptive.function_density import FunctionDensity
from vaerun.evaluation.adaptive.mixture import EXTRA_NOISE, Components, Mixture
from vaerun.evaluation.adaptive.mode_search import Modes, find_modes
from vaerun.evaluation.likelihood.annealed import simulate
from vaerun.models import Joint, LatentModel
from vaerun.randomness import ImageNoise
from vaerun.tracking.monitor import SILENT

CRUDE = Amis(samples=2, temperatures=4, starts=2, max_starts=4, rounds=1, max_rounds=1, round_samples=16)


@pytest.fixture(autouse=True)
def all_bridged(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proposal is reliable."""
    monkeypatch.setattr(adaptation, "EQUAL", 2.0)
    monkeypatch.setattr(adaptation, "RELIABLE", math.nan)


def noise_of(model: LatentModel, n: int, seed: int = 4) -> ImageNoise:
    return ImageNoise(seed, range(n), model.latent_dim + EXTRA_NOISE, model.mean)


def exact_of(model: LatentModel, x: Tensor, c: Tensor | None) -> Tensor:
    if model.decoder.stack.layers:
        return quadrature(model, x)[0]
    return exact_marginal(model, c, len(x)).log_prob(x.flatten(1)).detach()


def proposal_of(joint: Joint, starts: int = 16) -> Mixture:
    """The Laplace mixture of its modes, unadapted."""
    size, d = len(joint.x), joint.latent_dim
    table = torch.randn(2 * starts, size, d, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        none = torch.zeros(0, size, d)
        modes = find_modes(joint, none, lambda i, j: table[i:j], starts=starts, max_starts=2 * starts, chunk=1000)
    return initial_mixture(modes.select(torch.arange(size), int(modes.count.max())))


# -- the estimate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "context"), [(1, "label_prior"), (16, "plain"), (16, "label")])
def test_a_linear_decoder_has_its_exact_likelihood(d, context):
    model, images = linear_gaussian(context, d=d), 16
    split, amis = make_split(model, images), Amis(samples=16_000, temperatures=20, max_rounds=2)
    batch = split.batch(0, images)
    exact = exact_of(model, batch.x.double(), batch.c.double() if model.classes else None)
    result = adaptive_importance_sampling(model, split, amis, seed=0)
    error = (1 / result["amis_ess"] - 1 / amis.chains).clamp(min=0).sqrt()
    assert (result["amis_bridged"] == 1).all()
    assert ((result["amis"] - exact).abs() < 4 * error + 1e-4).all()
    assert abs((result["amis"] - exact).mean()) < 0.01
    assert (result["amis_pareto_k"] < 0.7).all()


@pytest.mark.parametrize(
    ("d", "likelihood", "activation"),
    [(1, "gaussian", "tanh"), (2, "gaussian", "relu"), (1, "bernoulli", "tanh"), (2, "bernoulli", "relu")],
)
def test_separated_modes_reach_quadrature(d, likelihood, activation):
    model = folded(d, likelihood, activation)
    n, source = 16, torch.Generator().manual_seed(3)
    split = images_at(model, 1.1 + 0.3 * torch.rand(n, d, generator=source))
    exact = quadrature(model, split.batch(0, n).x.double())[0]
    amis = Amis(samples=60_000, temperatures=8, starts=16, max_rounds=2)
    result = adaptive_importance_sampling(model, split, amis, seed=0)
    error = (1 / result["amis_ess"] - 1 / amis.chains).clamp(min=0).sqrt()
    assert ((result["amis"] - exact).abs() < 4 * error + 1e-4).all()
    assert abs((result["amis"] - exact).mean()) < 0.01


KNOWN = {
    "linear": lambda: linear_gaussian("plain", d=6),
    "labels": lambda: linear_gaussian("label_prior", d=8),
    "folded": lambda: folded(1),
    "bernoulli": lambda: folded(1, "bernoulli"),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("images", [1000, pytest.param(6000, marks=pytest.mark.slow)])
def test_the_mean_weight_is_unbiased_and_its_logarithm_a_bound(name, images):
    # Both ways: E[mean w] = p(x), and with the reverse chain from the latent of x counted, E[1 / mean w] = 1 / p(x).
    model = KNOWN[name]()
    result = amis_bracket(model, CRUDE, images=images, seed=1)
    x, _, c = simulate(model, list(range(images)), 1)
    exact = exact_of(model, x, c)
    lower, upper = result["amis_lower"] - exact, result["amis_upper"] - exact
    for weight in (lower.exp(), (-upper).exp()):
        error = standard_error(weight)
        assert error < 1 / images**0.5
        assert abs(weight.mean() - 1) < 4 * error
    assert lower.mean() < 4 * standard_error(lower)
    assert upper.mean() > -4 * standard_error(upper)
    assert upper.mean() - lower.mean() > 0.02  # not both are tight


def test_one_temperature_is_importance_sampling():
    model = make_model(context="label_prior", d=2)
    joint, noise = model.joint(*make_data(model, 3)), noise_of(model, 3)
    proposal, exact = proposal_of(joint), torch.randn(3, 2)
    with torch.no_grad():
        z = proposal.sample(noise("amis/bridge/0", PILOTS + 40).transpose(0, 1))[:, PILOTS:]
        log_w = joint.log_prob(z.transpose(0, 1)) - proposal.log_prob(z).T
        log_exact = joint.log_prob(exact.unsqueeze(0)) - proposal.log_prob(exact.unsqueeze(1)).T
        result = bridge.bridge(joint, proposal, noise, Amis(samples=1600, temperatures=1), exact=exact, chunk=77)
    weights = torch.softmax(log_w, 0)
    torch.testing.assert_close(result["log_likelihood"], torch.logsumexp(log_w, 0) - math.log(40))
    torch.testing.assert_close(result["effective_sample_size"], 1 / weights.square().sum(0))
    torch.testing.assert_close(result["upper"], torch.logsumexp(torch.cat([log_w, log_exact]), 0) - math.log(41))


def test_temperatures_make_up_for_a_bad_proposal():
    # In eight dimensions, off by 1.5 deviations in all.
    model = linear_gaussian("plain", d=8)
    x, _ = make_data(model, 6)
    truth = tempered(model, x, None, 1.0)
    lower = torch.linalg.cholesky(truth.precision_matrix)
    off = torch.linalg.solve(lower.mT, torch.full((6, 8, 1), 1.5 / 8**0.5))[..., 0]
    no = torch.zeros(6, dtype=torch.bool)
    modes = Modes((truth.mean + off).unsqueeze(1), 1.3 * lower.unsqueeze(1), torch.zeros(6, 1), no.long(), no)
    proposal, share = initial_mixture(modes), []
    for temperatures in (1, 10, 60):
        amis = Amis(samples=20_000, temperatures=temperatures)
        with torch.no_grad():
            result = bridge.bridge(model.joint(x), proposal, noise_of(model, 6), amis, chunk=9999)
        share.append(float(result["effective_sample_size"].mean()) / 500)
        error = (1 / result["effective_sample_size"] - 1 / 500).sqrt()
        if temperatures > 1:
            assert ((result["log_likelihood"] - exact_of(model, x, None)).abs() < 4 * error).all()
    assert share[0] < 0.2
    assert share[1] > 1.5 * share[0]
    assert share[2] > 0.45


def test_each_image_is_estimated_as_its_proposal_deserves():
    model = make_model(context="label_prior", d=2)
    joint, noise, amis = model.joint(*make_data(model, 5)), noise_of(model, 5), Amis(samples=60, temperatures=3)
    proposal, exact = proposal_of(joint), torch.randn(5, 2)
    reliable = torch.tensor([True, False, False, True, False])
    with torch.no_grad():
        options = {"exact": exact, "chunk": 999}
        plain = estimate(joint, proposal, noise, 60, **options)
        annealed = bridge.bridge(joint, proposal, noise, amis, **options)
        result = final_estimate(joint, proposal, reliable, noise, amis, **options)
        assert final_estimate(joint, proposal, ~reliable | True, noise, amis, **options)["bridged"].sum() == 0
    assert torch.equal(result.pop("bridged"), ~reliable)
    assert result.keys() == plain.keys() == annealed.keys()
    for name, value in result.items():
        torch.testing.assert_close(value, torch.where(reliable, plain[name], annealed[name]))


# -- transitions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("beta", [0.2, 0.8])
def test_a_transition_leaves_the_path_invariant_and_is_its_own_reversal(likelihood, beta):
    # Exact samples of f_t, on a fine grid, before and after a transition; two modes, an angle that often rejects.
    model, n, chains = folded(1, likelihood), 3, 20_000
    joint = model.joint(images_at(model, torch.full((n, 1), 0.9)).batch(0, n).x.double())
    proposal = proposal_of(joint)
    grid = torch.linspace(-3, 3, 6001).view(1, -1, 1).expand(n, -1, 1)
    with torch.no_grad():
        log_f = joint.log_prob(grid.transpose(0, 1)).T
        density = torch.softmax(beta * log_f + (1 - beta) * proposal.log_prob(grid), 1)
        index = torch.multinomial(density, chains, replacement=True, generator=torch.Generator().manual_seed(1))
        before = grid.gather(1, index.unsqueeze(-1))
        path = bridge._Path(joint, proposal, 9999, SILENT)
        state, acceptance = path.move(path.state(before), noise_of(model, n)("move", chains), beta, torch.ones(n))
        after = state.z
        expected = path.state(after)
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(state, name), value)
    assert 0.2 < acceptance.mean() < 0.98
    assert 0.2 < (after != before).double().mean() < 0.98
    statistics = (lambda z: z, lambda z: z.abs(), lambda z: z**2, lambda z: (z > 0.9).double())
    for f in statistics:
        change = (f(after) - f(before))[..., 0]
        assert (change.mean(1).abs() < 4 * change.std(1) / chains**0.5).all()
        for g in statistics:
            flow = (f(before) * g(after) - f(after) * g(before))[..., 0]
            assert (flow.mean(1).abs() <= 4 * flow.std(1) / chains**0.5 + 1e-12).all()


def test_the_angles_come_from_the_pilot_chains_alone(monkeypatch):
    model = linear_gaussian("plain", d=3)
    joint, noise = model.joint(make_data(model, 4)[0]), noise_of(model, 4)
    seen: list[list[Tensor]] = []
    move = bridge._Path.move

    def spy(path, state, step, beta, angle):
        seen[-1].append(angle)
        return move(path, state, step, beta, angle)

    monkeypatch.setattr(bridge._Path, "move", spy)
    values = []
    for shift in (0.0, 0.5):

        def shifted(stream: str, k: int, shift=shift) -> Tensor:
            return torch.cat([noise(stream, k)[:PILOTS], noise(stream, k)[PILOTS:] + shift])

        seen.append([])
        with torch.no_grad():
            values.append(
                bridge.bridge(joint, proposal_of(joint), shifted, Amis(samples=800, temperatures=6), chunk=99)
            )
    assert len(seen[0]) == 5
    for first, second in zip(*seen, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=0)  # up to rounding
    assert len({float(angle[0]) for angle in seen[0]}) == 5
    assert (values[0]["log_likelihood"] != values[1]["log_likelihood"]).all()


def test_chains_that_leave_the_density_do_not_count():
    # Half of a normal: beyond zero the density is not a number.
    class Half:
        latent_dim = 1

        def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
            log_f = -0.5 * (z.square().sum(-1) + math.log(2 * math.pi))
            return torch.where(z[..., 0] > 0, math.nan, log_f), torch.where(z > 0, math.nan, -z)

    components = Components(torch.zeros(2, 2, 1), torch.ones(2, 2, 1, 1), torch.tensor([True, False]))
    proposal = Mixture(components, torch.full((2, 2), 0.5))
    noise = ImageNoise(0, range(2), 1 + EXTRA_NOISE, torch.zeros(1))
    result = bridge.bridge(Half(), proposal, noise, Amis(samples=160_000, temperatures=5), chunk=9999)
    torch.testing.assert_close(result["log_likelihood"], torch.full((2,), math.log(0.5)), atol=0.06, rtol=0)


def test_nothing_is_evaluated_where_a_decoder_would_overflow():
    class Steep:
        latent_dim = 2
        farthest = 0.0

        def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
            self.farthest = max(self.farthest, float(z.abs().max()))
            return -1e6 * z.square().sum(-1), -2e6 * z

    eye = torch.eye(2).expand(3, 2, 2, 2)
    proposal = Mixture(Components(torch.zeros(3, 2, 2), eye, torch.tensor([True, False])), torch.full((3, 2), 0.5))
    target, noise = Steep(), ImageNoise(0, range(3), 2 + EXTRA_NOISE, torch.zeros(1))
    result = bridge.bridge(target, proposal, noise, Amis(samples=2000, temperatures=9), chunk=9999)
    assert 1 < target.farthest < 2 * bridge.REACH
    assert result["log_likelihood"].isfinite().all()


# -- what it depends on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("likelihood", "context"), [("gaussian", "plain"), ("bernoulli", "label_prior")])
def test_neither_chunk_nor_company_changes_a_value(likelihood, context):
    model = make_model("amortised", likelihood, "mlp", context, d=2).eval()
    split = make_split(model, 9)
    quick = Amis(samples=180, temperatures=6, starts=4, max_starts=16, rounds=1, max_rounds=2, round_samples=100)
    run = partial(adaptive_importance_sampling, model, split, quick, seed=2)
    expected = run(chunk=100_000)
    for other, count in ((run(chunk=97), 9), (run(chunk=330), 9), (run(images=4), 4)):
        for name, value in expected.items():
            torch.testing.assert_close(other[name], value[:count], atol=1e-6, rtol=1e-7, equal_nan=True)
    assert (expected["amis_bridged"] == 1).all()
    assert ((run(seed=3)["amis"] - expected["amis"]).abs() > 1e-9).all()


def test_a_reliable_proposal_is_not_bridged(monkeypatch):
    monkeypatch.setattr(adaptation, "EQUAL", 0.01)
    monkeypatch.setattr(adaptation, "RELIABLE", 9.0)
    model = make_model(d=2).eval()
    split = make_split(model, 4)
    result = adaptive_importance_sampling(model, split, Amis(samples=100), seed=0)
    other = adaptive_importance_sampling(model, split, Amis(samples=100, temperatures=2), seed=0)
    assert (result["amis_bridged"] == 0).all()
    assert torch.equal(result["amis"], other["amis"])


# -- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("samples", [2, 700])  # with many, samples are not decoded where the decoder ends in a matrix
def test_value_and_gradient_are_those_of_autograd(network, likelihood, context, samples):
    model = make_model("amortised", likelihood, network, context, d=2).eval()
    joint, z = model.joint(*make_data(model, 3)), torch.randn(samples, 3, 2)
    with torch.no_grad():
        value, gradient = joint.value_and_gradient(z)
    z.requires_grad_()
    expected = joint.log_prob(z)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), z)[0])
    assert not value.requires_grad
    assert not gradient.requires_grad


def test_value_and_gradient_of_a_function():
    centre = torch.randn(4, 3)
    target = FunctionDensity(lambda z: -(z - centre).pow(4).sum(-1), torch.zeros(4, 3), chunk=5)
    rows = torch.tensor([2, 0, 2, 3])
    z = torch.randn(6, 4, 3)
    value, gradient = target.select(rows).value_and_gradient(z)
    torch.testing.assert_close(value, -(z - centre[rows]).pow(4).sum(-1))
    torch.testing.assert_close(gradient, -4 * (z - centre[rows]).pow(3))


def test_there_are_enough_chains_for_a_k_hat():
    for samples, chains in {2000: 50, 8000: 200, 100: 25, 2: 2}.items():
        assert Amis(samples=samples).chains == chains


def test_adaptation_says_which_proposals_are_reliable(monkeypatch):
    monkeypatch.setattr(adaptation, "RELIABLE", 0.5)
    model = linear_gaussian("plain", d=2)
    x, _ = make_data(model, 2)
    truth = tempered(model, x, None, 1.0)
    mean, lower = truth.mean.clone(), torch.linalg.cholesky(truth.precision_matrix).clone()
    mean[1] += torch.linalg.solve(lower[1].mT, torch.tensor([9.0, 9.0]))
    lower[1] *= 9
    no = torch.zeros(2, dtype=torch.bool)
    modes = Modes(mean.unsqueeze(1), lower.unsqueeze(1), torch.zeros(2, 1), no.long(), no)
    with torch.no_grad():
        _, rounds, reliable = adapt_proposal(
            model.joint(x), modes, noise_of(model, 2), Amis(round_samples=100, max_rounds=3), chunk=9999
        )
    assert reliable.tolist() == [True, False]
    assert rounds.tolist() == [2, 3]
