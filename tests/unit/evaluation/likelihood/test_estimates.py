"""Estimates of log p(x) against the number of samples: their limit, their nesting, and what they cost."""

from __future__ import annotations

import math
import signal
from functools import partial

import pytest
import torch
from support.models.annealing import linear_gaussian, make_split
from support.models.members import exact_marginal, image_noise, make_model
from support.models.monitoring import RecordingMonitor
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.data.transforms import Transform
from vaerun.errors import InputError, Interrupted
from vaerun.evaluation import importance_sampling
from vaerun.evaluation.adaptive.adaptation import Amis, adapt_proposal
from vaerun.evaluation.adaptive.estimate import estimate
from vaerun.evaluation.adaptive.model_modes import amis_noise, model_modes
from vaerun.evaluation.likelihood.annealed import Annealing, annealed_importance_sampling
from vaerun.evaluation.likelihood.estimates import (
    GRADIENT_COST,
    CountedDensity,
    Estimates,
    annealing_cost,
    check_estimates,
    estimates_by_samples,
)
from vaerun.evaluation.likelihood.hmc import Target
from vaerun.models import LatentModel
from vaerun.signals import ShutdownSignal
from vaerun.tracking.monitor import Monitor

QUICK = Amis(starts=2, max_starts=4, rounds=1, max_rounds=2, round_samples=100)
METHODS = ("prior", "posterior", "amis")


def whole(model: LatentModel, split: Split) -> tuple[Tensor, Tensor | None]:
    batch = split.batch(0, len(split))
    return batch.x, batch.c.double() if model.classes else None


def test_sizes() -> None:
    assert Estimates(samples=1).sizes == [1]
    assert Estimates(samples=10).sizes == [1, 2, 5, 10]
    assert Estimates(samples=700).sizes == [1, 2, 5, 10, 20, 50, 100, 200, 500, 700]
    for key in ("samples", "repeats"):
        with pytest.raises(InputError, match=rf"evaluation\.estimate\.{key} must be"):
            Estimates(**{key: 0})


@pytest.mark.parametrize("context", ["plain", "label_prior"])
def test_every_curve_ends_at_the_exact_likelihood(context: str) -> None:
    model = linear_gaussian(context)
    split = make_split(model, 3)
    x, c = whole(model, split)
    exact = exact_marginal(model, c, 3).log_prob(x.flatten(1)).detach()
    values = estimates_by_samples(model, split, Estimates(20_000, 2), QUICK, seed=0)
    assert all(values[name].shape == (3, 2, 14) and values[name].dtype == torch.float64 for name in METHODS)
    for name, tolerance in (("prior", 0.2), ("posterior", 0.2), ("amis", 0.01)):
        last = values[name][..., -1] - exact[:, None]
        assert last.abs().max() < tolerance, name
    assert (values["prior"][..., 0] - exact[:, None]).abs().max() > 1  # K = 1 is far off


def test_each_curve_rises_with_its_samples_in_expectation_and_stays_below() -> None:
    model = linear_gaussian(d=2)
    split = make_split(model, 1)
    exact = exact_marginal(model, None, 1).log_prob(split.batch(0, 1).x.flatten(1)).detach()
    values = estimates_by_samples(model, split, Estimates(100, 400), QUICK, seed=3)
    for name in METHODS:
        curve = values[name][0]  # [R, n]
        gain, error = curve.diff(dim=1), curve - exact
        for difference in (gain, -error):
            assert (difference.mean(0) > -4 * difference.std(0) / 20).all(), name
    assert (values["prior"][0].diff(dim=1).mean(0)[:3] > 0.1).all()  # clearly so where there is much to gain
    assert (values["amis"][0].std(0) < values["posterior"][0].std(0)).all()


@pytest.mark.parametrize("context", ["plain", "label_prior"])
def test_the_value_at_k_is_that_of_the_first_k_samples(context: str) -> None:
    model = make_model("laplace2", context=context).eval()
    split = make_split(model, 4, Transform(dequantize=True, logit=True))
    x, c = whole(model, split)
    log_det = split.batch(0, 4).log_det
    settings = Estimates(700, 2)
    values = estimates_by_samples(model, split, settings, QUICK, seed=5)
    noise = amis_noise(model, range(4), 5)
    with torch.no_grad():
        joint = model.joint(x, c, image_noise(model, range(4), 5))
        modes = model_modes(model, joint, noise, QUICK, chunk=1000)
        proposal, _, _ = adapt_proposal(joint, modes, noise, QUICK, chunk=1000)
        prior_noise = torch.cat([joint.noise(f"prior/{block}", 500) for block in range(2)])
        log_p = joint.log_likelihood(joint.prior.transform(prior_noise)[0])
        for i, k in enumerate(settings.sizes):
            plain = importance_sampling(model, split, samples=k, seed=5)["log_likelihood"]
            adapted = estimate(joint, proposal, noise, k, chunk=1000)["log_likelihood"] + log_det
            simple = torch.logsumexp(log_p[:k], 0) - math.log(k) + log_det
            for name, expected in (("posterior", plain), ("amis", adapted), ("prior", simple)):
                torch.testing.assert_close(values[name][:, 0, i], expected, atol=1e-8, rtol=1e-10)
    assert all((values[name][:, 0, :-1] != values[name][:, 1, :-1]).all() for name in METHODS)  # repeats differ


def test_neither_chunk_nor_company_changes_a_value() -> None:
    model = make_model(context="label").eval()
    split = make_split(model, 5)
    run = partial(estimates_by_samples, model, split, Estimates(600, 2), QUICK, seed=1)
    expected = run()
    for chunk in (7, 600, 2000):
        for name, value in run(chunk=chunk).items():
            torch.testing.assert_close(value, expected[name], atol=1e-7, rtol=0)
    for name, value in run(images=2).items():
        torch.testing.assert_close(value, expected[name][:2], atol=1e-7, rtol=0)


def test_a_model_without_posterior_has_the_other_two() -> None:
    model = linear_gaussian()
    values = estimates_by_samples(model, make_split(model, 2), Estimates(50, 1), QUICK, seed=1, posterior=False)
    assert values.keys() == {"prior", "amis", "amis_cost"}


def test_the_cost_of_adaptation_is_counted_per_image() -> None:
    model = make_model(d=3).eval()
    x, _ = whole(model, make_split(model, 3))
    cost, rows = torch.zeros(3, dtype=torch.long), torch.arange(3)
    joint = model.joint(x)
    counted = CountedDensity(joint, cost, rows)
    z = torch.randn(5, 3, 3)
    with torch.no_grad():
        assert torch.equal(counted.log_prob(z), joint.log_prob(z))
        part = counted.select(torch.tensor([2, 2, 0]))
        part.linearise(z[0])
        part.log_ratio(z[0], z[1])
    assert counted.latent_dim == 3
    assert cost.tolist() == [5 + 4 + 2, 5, 5 + 2 * (4 + 2)]
    # The rounds are counted, and the searches more than that.
    values = estimates_by_samples(model, make_split(model, 3), Estimates(1, 1), QUICK, seed=1)
    assert (values["amis_cost"] > QUICK.rounds * QUICK.round_samples + 2 * (2 * QUICK.starts + 1)).all()


@pytest.mark.parametrize(
    "annealing", [Annealing(1, 3), Annealing(5, 3, 2), Annealing(300, 2, 1), Annealing(4, 2, 3, adapt=False)]
)
def test_the_cost_of_annealing_is_that_of_its_gradients(annealing: Annealing, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model().eval()
    gradients, call = [], Target.__call__
    monkeypatch.setattr(Target, "__call__", lambda self, z: gradients.append(len(z)) or call(self, z))
    annealed_importance_sampling(model, make_split(model, 1), annealing, seed=0)
    assert annealing_cost(annealing) == GRADIENT_COST * sum(gradients)


def test_models_it_is_not_for() -> None:
    model = make_model().eval()
    model.latent_dim = 1001
    with pytest.raises(InputError, match="up to 1000 latent dimensions, and this model has 1001"):
        check_estimates(model)


def test_it_stops_when_asked_and_tells_how_far_it_is() -> None:
    model = make_model().eval()
    run = partial(estimates_by_samples, model, make_split(model, 3), Estimates(5, 1), QUICK, seed=0, chunk=1000)
    monitor = RecordingMonitor()
    run(monitor=monitor)
    assert monitor.advanced == [2, 1]
    stop = ShutdownSignal()
    stop.signum = signal.SIGTERM
    with pytest.raises(Interrupted):
        run(monitor=Monitor(stop))
