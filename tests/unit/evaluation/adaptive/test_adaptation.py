"""The parts of adaptive importance sampling: weights, moments, further rounds, and the estimate spelled out."""

from __future__ import annotations

import math

import pytest
import torch
from support.models.annealing import linear_gaussian, tempered
from support.models.folded import folded, images_at, quadrature
from support.models.members import exact_marginal, make_data, make_model
from torch import Tensor

from vaerun.evaluation.adaptive import adaptation
from vaerun.evaluation.adaptive.adaptation import Amis, _Rounds, adapt_proposal, initial_mixture
from vaerun.evaluation.adaptive.estimate import estimate
from vaerun.evaluation.adaptive.mixture import EXTRA_NOISE, Components, Mixture
from vaerun.evaluation.adaptive.mode_search import Modes, find_modes
from vaerun.evaluation.likelihood.pareto import pareto_k, tail_length
from vaerun.models import Joint, LatentModel
from vaerun.randomness import ImageNoise
from vaerun.tracking.monitor import SILENT


@pytest.fixture
def always_adapted(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proposal is so good that it is left as it is."""
    monkeypatch.setattr(adaptation, "EQUAL", 2.0)


def noise_of(model: LatentModel, n: int, seed: int = 4) -> ImageNoise:
    return ImageNoise(seed, range(n), model.latent_dim + EXTRA_NOISE, model.mean)


def modes_of(joint: Joint, starts: int = 16) -> Modes:
    size, d = len(joint.x), joint.latent_dim
    table = torch.randn(2 * starts, size, d, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        none = torch.zeros(0, size, d)
        return find_modes(joint, none, lambda i, j: table[i:j], starts=starts, max_starts=2 * starts, chunk=1000)


@pytest.mark.parametrize("samples", [1, 20, 499, 500, 501, 1200])
def test_the_estimate_is_spelled_out(samples):
    # All log-weights at once, from the image's own noise; more samples begin with those of fewer.
    model = make_model(context="label_prior", d=2)
    joint, noise = model.joint(*make_data(model, 3)), noise_of(model, 3)
    lower = torch.linalg.cholesky(torch.tensor([[2.0, 0.3], [0.3, 1.5]])).expand(3, 2, 2, 2)
    components = Components(torch.randn(3, 2, 2), lower, torch.tensor([True, False]))
    proposal = Mixture(components, torch.tensor([[0.3, 0.7]]).expand(3, 2))
    exact = torch.randn(3, 2)
    with torch.no_grad():
        z = proposal.sample(torch.cat([noise(f"amis/estimate/{i}", 500) for i in range(3)])[:samples].transpose(0, 1))
        log_w = joint.log_prob(z.transpose(0, 1)) - proposal.log_prob(z).T
        log_exact = joint.log_prob(exact.unsqueeze(0)) - proposal.log_prob(exact.unsqueeze(1)).T
        result = estimate(joint, proposal, noise, samples, exact=exact, chunk=100)
    weights = torch.softmax(log_w, 0)
    expected = {
        "log_likelihood": torch.logsumexp(log_w, 0) - math.log(samples),
        "effective_sample_size": 1 / weights.square().sum(0),
        "pareto_k": pareto_k(torch.topk(log_w, tail_length(samples) + 1, dim=0).values, samples),
        "upper": torch.logsumexp(torch.cat([log_w, log_exact]), 0) - math.log(samples + 1),
    }
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, atol=1e-9, rtol=1e-9, equal_nan=True)
    assert result["pareto_k"].isfinite().all() == (samples > 20)


def test_the_samples_of_the_estimate_are_no_samples_of_the_rounds(always_adapted):
    model = make_model(d=2)
    joint, seen = model.joint(make_data(model, 2)[0]), set()

    class Spy(ImageNoise):
        def __call__(self, stream: str, k: int) -> Tensor:
            assert stream not in seen
            seen.add(stream)
            return super().__call__(stream, k)

        def select(self, rows: Tensor) -> ImageNoise:
            selected = super().select(rows)
            return Spy(selected.seed, selected.images, selected.latent_dim, model.mean)

    noise = Spy(4, range(2), 2 + EXTRA_NOISE, model.mean)
    with torch.no_grad():
        proposal, _, _ = adapt_proposal(joint, modes_of(joint), noise, Amis(rounds=2, max_rounds=2), chunk=999)
        of_rounds = set(seen)
        estimate(joint, proposal, noise, 1200, chunk=999)
    assert len(of_rounds) == 2
    assert len(seen - of_rounds) == 3  # blocks


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_the_weights_of_all_rounds_estimate_the_likelihood(likelihood):
    # Each sample is weighted by the mixture of all that samples were drawn from; else the adapted moments are biased.
    model = folded(1, likelihood)
    x = images_at(model, 1.0 + 0.3 * torch.rand(6, 1)).batch(0, 6).x.double()
    joint, noise = model.joint(x), noise_of(model, 6)
    exact = quadrature(model, x)[0]
    rounds = _Rounds(initial_mixture(modes_of(joint)))
    for number in range(3):
        with torch.no_grad():
            rounds.draw(joint, noise(f"amis/round/{number}", 4000).transpose(0, 1), 9999, SILENT)
            rounds.adapt()
        n = rounds.log_w.shape[1]
        assert n == 4000 * (number + 1)
        weight = torch.exp(rounds.log_w - exact.unsqueeze(1))
        error = weight.std(1) / n**0.5
        assert (error < 0.03).all()
        assert ((weight.mean(1) - 1).abs() < 4 * error).all()


@pytest.mark.parametrize("context", ["plain", "label_prior"])
@pytest.mark.parametrize("d", [1, 3])
def test_a_normal_takes_the_moments_of_the_posterior(context, d, always_adapted):
    # From a mode that is off by two deviations, with a precision four times too large.
    model = linear_gaussian(context, d=d)
    x, c = make_data(model, 4)
    truth = tempered(model, x, c, 1.0)
    joint, lower = model.joint(x, c), torch.linalg.cholesky(truth.precision_matrix)
    off = torch.linalg.solve(lower.mT, torch.full((4, d, 1), 2 / d**0.5))[..., 0]
    exact = exact_marginal(model, c, 4).log_prob(x.flatten(1)).detach()
    modes = Modes(
        (truth.mean + off).unsqueeze(1),
        2 * lower.unsqueeze(1),
        exact.unsqueeze(1),
        torch.ones(4, dtype=torch.long),
        torch.zeros(4, dtype=torch.bool),
    )
    amis = Amis(rounds=5, max_rounds=5, round_samples=4000)
    with torch.no_grad():
        proposal, rounds, _ = adapt_proposal(joint, modes, noise_of(model, 4), amis, chunk=9999)
        result = estimate(joint, proposal, noise_of(model, 4), 2000, chunk=9999)
    assert (rounds == 5).all()
    assert not bool(proposal.components.heavy[1])
    mean, factor = proposal.components.mean[:, 1], proposal.components.cholesky[:, 1]
    white = ((mean - truth.mean).unsqueeze(1) @ lower)[:, 0]
    assert (white.abs() < 0.1).all()
    # The covariance in units of the posterior's: the inflation times the identity.
    ratio = torch.linalg.inv(torch.linalg.solve(lower, factor) @ torch.linalg.solve(lower, factor).mT)
    inflation = ratio.diagonal(dim1=-2, dim2=-1).mean()
    assert 1 < inflation < 1.5
    assert (ratio - inflation * torch.eye(d)).abs().max() < 0.15
    assert (proposal.weight[:, 1] > 0.7).all()
    torch.testing.assert_close(proposal.weight.sum(1), torch.ones(4))
    assert (result["effective_sample_size"] > 0.85 * 2000).all()
    torch.testing.assert_close(result["log_likelihood"], exact, atol=0.04, rtol=0)


def test_the_components_share_out_the_modes(always_adapted):
    # Equal starting weights: those of the adapted mixture follow the mass of each mode.
    model = folded(1, activation="relu")
    x = images_at(model, torch.full((6, 1), 1.2)).batch(0, 6).x.double()
    total, masses = quadrature(model, x)
    joint, modes = model.joint(x), modes_of(model.joint(x)).select(torch.arange(6), 2)
    modes = Modes(modes.mean, modes.cholesky, torch.zeros(6, 2), modes.starts, modes.disagreed)
    with torch.no_grad():
        amis = Amis(rounds=6, max_rounds=6, round_samples=2000)
        proposal, _, _ = adapt_proposal(joint, modes, noise_of(model, 6), amis, chunk=9999)
    weight = proposal.weight.unflatten(1, (2, 2)).sum(1)
    right = torch.where(modes.mean[..., 0] > 0, weight, 0.0).sum(1)
    share = (masses[:, 1] - total).exp()
    assert ((0.9 * share + 0.1 * 0.5 - right).abs() < 0.05).all()  # a tenth of the first weights stays


def test_only_unreliable_images_get_further_rounds(always_adapted):
    # Image 1 has a mode that is far off and far too narrow; image 0 an exact one.
    model = linear_gaussian("plain", d=2)
    x, _ = make_data(model, 2)
    truth = tempered(model, x, None, 1.0)
    mean, lower = truth.mean.clone(), torch.linalg.cholesky(truth.precision_matrix).clone()
    mean[1] += torch.linalg.solve(lower[1].mT, torch.tensor([2.0, 2.0]))
    lower[1] *= 3
    no = torch.zeros(2, dtype=torch.bool)
    modes = Modes(mean.unsqueeze(1), lower.unsqueeze(1), torch.zeros(2, 1), no.long(), no)
    joint, noise = model.joint(x), noise_of(model, 2)

    def rounds_of(**options) -> tuple[Mixture, list[int]]:
        with torch.no_grad():
            proposal, rounds, _ = adapt_proposal(joint, modes, noise, Amis(round_samples=100, **options), chunk=9999)
        return proposal, rounds.tolist()

    _, few = rounds_of(rounds=1, max_rounds=1)
    assert few == [1, 1]
    alone, one = rounds_of(rounds=1, max_rounds=20)
    assert one[0] == 2  # reliable twice
    assert 1 < one[1] < 20
    assert rounds_of(rounds=3, max_rounds=20)[1][0] == 3
    assert rounds_of(rounds=30, max_rounds=2)[1] == [2, 2]
    # What the other image needed did not change the first one's proposal.
    with torch.no_grad():
        first, _, _ = adapt_proposal(
            model.joint(x[:1]),
            modes.select(torch.tensor([0]), 1),
            noise_of(model, 1),
            Amis(round_samples=100, rounds=1, max_rounds=20),
            chunk=9999,
        )
    torch.testing.assert_close(first.components.mean[0], alone.components.mean[0])
    torch.testing.assert_close(first.weight[0], alone.weight[0])


def test_an_image_without_any_usable_mode_still_has_an_estimate():
    # From a standard normal at the origin, which the rounds adapt: here a posterior that covers it.
    model = linear_gaussian("plain", d=1)
    with torch.no_grad():
        model.likelihood.log_variance.fill_(3.0)
    x, _ = make_data(model, 3)
    joint, bad = model.joint(x), torch.full((4, 3, 1), math.nan)
    with torch.no_grad():
        modes = find_modes(joint, bad, lambda i, j: bad[: j - i], starts=2, max_starts=4, chunk=99)
        proposal, _, _ = adapt_proposal(joint, modes, noise_of(model, 3), Amis(), chunk=9999)
        result = estimate(joint, proposal, noise_of(model, 3), 2000, chunk=9999)
    exact = exact_marginal(model, None, 3).log_prob(x.flatten(1)).detach()
    torch.testing.assert_close(result["log_likelihood"], exact, atol=0.03, rtol=0)


def test_samples_of_no_density_have_no_weight():
    # A decoder that overflows far out: NaN, inf and -inf of log f count as a density of zero.
    class Broken:
        latent_dim = 1

        def select(self, rows: Tensor) -> Broken:
            return self

        def log_prob(self, z: Tensor) -> Tensor:
            log_f = -0.5 * (z.square().sum(-1) + math.log(2 * math.pi))
            for level, value in ((1.0, math.nan), (1.5, math.inf), (2.0, -math.inf)):
                log_f = torch.where(z[..., 0] > level, value, log_f)
            return log_f

    no = torch.zeros(2, dtype=torch.bool)
    modes = Modes(torch.zeros(2, 1, 1), torch.ones(2, 1, 1, 1), torch.zeros(2, 1), no.long(), no)
    noise = ImageNoise(0, range(2), 1 + EXTRA_NOISE, torch.zeros(1))
    proposal, _, _ = adapt_proposal(Broken(), modes, noise, Amis(), chunk=9999)
    result = estimate(Broken(), proposal, noise, 4000, chunk=9999)
    mass = torch.full((2,), math.log(0.5 * math.erfc(-1 / math.sqrt(2))))
    torch.testing.assert_close(result["log_likelihood"], mass, atol=0.06, rtol=0)
