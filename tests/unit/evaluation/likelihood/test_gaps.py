"""Inference gaps against linear-Gaussian models, where the posterior and each family's best member are known."""

from __future__ import annotations

import math
import signal
from functools import partial
from typing import Any

import pytest
import torch
from support.models.members import POSTERIORS, TRANSFORMS, Posterior, exact_marginal, image_noise, make_model
from support.models.monitoring import RecordingMonitor
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from vaerun.data.dataset import Split
from vaerun.distributions import DiagonalNormal
from vaerun.errors import InputError, Interrupted
from vaerun.evaluation import importance_sampling
from vaerun.evaluation.likelihood.gaps import inference_gaps, unconverged_share
from vaerun.evaluation.likelihood.optimal_posterior import LEARNING_RATE_CUTS, Refinement, optimise_posterior
from vaerun.inference import Amortised, Laplace
from vaerun.models import LatentModel
from vaerun.signals import ShutdownSignal
from vaerun.tracking.monitor import Monitor

EXACT = Posterior(partial(Laplace, steps=1, damping="none"))
FULL = ["laplace0", "laplace2", "laplace2_alone", "full"]
QUICK = Refinement(samples=4, learning_rate=0.05, window=10, max_steps=60)
SAMPLES = ("importance_samples", "elbo_samples")
DENSITIES = {"elbo", "elbo_optimal", "log_likelihood"}


def make_split(model: LatentModel, n: int = 5, transform: str | None = None) -> Split:
    """Images of the model's shape, of 3 classes, that its likelihood allows."""
    transform = transform or ("fixed" if model.likelihood.name == "bernoulli" else "plain")
    images = torch.randint(0, 256, (n, *model.image_shape), generator=torch.Generator().manual_seed(4))
    if transform == "fixed":
        images = (images > 127) * 255
    labels = torch.arange(n) % 3
    return Split("test", images.to(torch.uint8), labels, 3, TRANSFORMS[transform], transform == "fixed")


def whole(model: LatentModel, split: Split) -> tuple[Tensor, Tensor | None]:
    batch = split.batch(0, len(split))
    return batch.x, batch.c.double() if model.classes else None


def exact_posterior(model: LatentModel, x: Tensor, c: Tensor | None) -> MultivariateNormal:
    """p(z | x, c) of a linear-Gaussian model."""
    d, weight, s2 = model.latent_dim, model.decoder.affine.weight.detach(), model.likelihood.log_variance.exp().detach()
    prior = model.joint(x, c).prior.detach()
    residual = x.flatten(1) - model.decoder.affine.bias.detach() - model.offset.flatten()
    if c is not None:
        residual = residual - c @ weight[:, d:].mT
    w = weight[:, :d]
    precision = torch.diag_embed(1 / prior.variance) + w.mT @ w / s2
    information = residual @ w / s2 + prior.mean / prior.variance
    return MultivariateNormal(torch.linalg.solve(precision, information), precision_matrix=precision)


def normal(q: Any) -> MultivariateNormal:
    return MultivariateNormal(q.mean, q.covariance_matrix)


def check_monte_carlo(result: Tensor, exact: Tensor, spread: Tensor, samples: int) -> None:
    """Means of so many samples of this standard deviation; 0.01 nats for the search."""
    assert ((result - exact).abs() < 5 * spread / math.sqrt(samples) + 0.01).all()


# -- against exact truth ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("posterior", "context"), [*((name, "plain") for name in FULL), ("full", "label_prior")])
def test_a_family_that_holds_the_posterior_finds_it(posterior, context):
    model = make_model(posterior, network="linear", context=context)
    split = make_split(model)
    x, c = whole(model, split)
    exact, p = exact_marginal(model, c, 5).log_prob(x.flatten(1)).detach(), exact_posterior(model, x, c)
    optimum = optimise_posterior(model, x, c, torch.arange(5), Refinement(), seed=0)
    assert optimum.converged.all()
    assert (kl_divergence(normal(optimum.q), p) < 0.01).all()
    result = inference_gaps(model, split, Refinement(), importance_samples=500, elbo_samples=4000, seed=0)
    assert result["gap_converged"].all()
    torch.testing.assert_close(result["log_likelihood"], exact, atol=0.01, rtol=0)
    assert (result["gap_approximation"].abs() < 0.02).all()
    # All that is lost is lost by amortisation: KL(q || p(z | x)).
    with torch.no_grad():
        q = normal(model.infer(model.joint(x, c)))
        z = q.sample((4000,))
        check_monte_carlo(result["gap_amortisation"], kl_divergence(q, p), (q.log_prob(z) - p.log_prob(z)).std(0), 4000)
    assert kl_divergence(q, p).max() > 0.05


@pytest.mark.parametrize(("posterior", "context"), [("amortised", "plain"), ("amortised", "label"), ("semi2", "plain")])
def test_a_diagonal_family_finds_its_best_member(posterior, context):
    # Mean of the posterior, variances 1 / diagonal of its precision; what remains is known too.
    model = make_model(posterior, network="linear", context=context)
    split = make_split(model)
    x, c = whole(model, split)
    p = exact_posterior(model, x, c)
    variance = 1 / torch.diagonal(p.precision_matrix, dim1=-2, dim2=-1)
    best = kl_divergence(MultivariateNormal(p.mean, torch.diag_embed(variance)), p)
    optimum = optimise_posterior(model, x, c, torch.arange(5), Refinement(), seed=0)
    excess = kl_divergence(normal(optimum.q), p) - best
    assert optimum.converged.all()
    assert (excess > -1e-12).all()
    assert (excess < 0.01).all()
    result = inference_gaps(model, split, Refinement(), importance_samples=4000, elbo_samples=4000, seed=0)
    with torch.no_grad():
        z = optimum.q.sample((4000,))
        spread = (optimum.q.log_prob(z) - p.log_prob(z)).std(0)
    check_monte_carlo(result["gap_approximation"], best, spread, 4000)
    assert best.min() > 0.03
    assert result["gap_amortisation"].max() > 0.3


def test_an_exact_posterior_has_no_gaps():
    model = make_model(EXACT, network="linear")
    split = make_split(model)
    x, _ = whole(model, split)
    result = inference_gaps(model, split, Refinement(), importance_samples=20, elbo_samples=20, seed=0)
    exact = exact_marginal(model, None, 5).log_prob(x.flatten(1)).detach()
    torch.testing.assert_close(result["elbo"], exact, atol=1e-9, rtol=0)
    for name in ("elbo_optimal", "log_likelihood"):  # by steps about the optimum
        torch.testing.assert_close(result[name], exact, atol=0.01, rtol=0)
    # It stops as soon as the rule allows: `patience` windows at each learning rate.
    assert (result["gap_steps"] == 2 * 50 * (LEARNING_RATE_CUTS + 1)).all()
    assert result["gap_converged"].all()


@pytest.mark.parametrize(("likelihood", "context"), [("gaussian", "label_prior"), ("bernoulli", "plain")])
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_gaps_of_every_posterior_are_nonnegative_and_add_up(posterior, context, likelihood):
    model = make_model(posterior, likelihood, context=context).requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    split = make_split(model, 4)
    search = Refinement(samples=4, learning_rate=0.05, window=20, tolerance=0.02)
    result = inference_gaps(model, split, search, importance_samples=600, elbo_samples=600, seed=1)
    assert all(value.shape == (4,) and not value.requires_grad for value in result.values())
    assert all(value.dtype == torch.float64 for name, value in result.items() if name != "gap_converged")
    assert result["gap_converged"].all()
    assert unconverged_share(result["gap_converged"]) == 0
    assert (result["gap_approximation"] >= 0).all()  # Jensen, for both are from the same samples
    assert (result["gap_amortisation"] > -0.02).all()
    if POSTERIORS[posterior].encoder:  # an untrained one is far off
        assert result["gap_amortisation"].mean() > 0.03
    torch.testing.assert_close(result["gap_approximation"], result["log_likelihood"] - result["elbo_optimal"])
    torch.testing.assert_close(result["gap_amortisation"], result["elbo_optimal"] - result["elbo"])
    torch.testing.assert_close(result["gap_inference"], result["gap_approximation"] + result["gap_amortisation"])
    # The numbers of q itself are those of importance sampling.
    usual = importance_sampling(model, split, samples=600, seed=1)
    torch.testing.assert_close(result["elbo"], usual["elbo"], atol=1e-9, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


# -- invariances ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_neither_batch_nor_company_changes_a_value(posterior):
    model = make_model(posterior, context="label")
    split = make_split(model, 7)
    search = Refinement(samples=3, learning_rate=0.1, window=5, tolerance=0.3, patience=1, max_steps=100)
    run = partial(inference_gaps, model, split, search, importance_samples=30, elbo_samples=20, seed=2)
    expected = run(batch=1)
    for batch in (3, None):
        result = run(batch=batch)
        assert result.keys() == expected.keys()
        for name in result:
            torch.testing.assert_close(result[name], expected[name], atol=1e-6, rtol=0)
    for name, value in run(images=2).items():
        torch.testing.assert_close(value, expected[name][:2], atol=1e-6, rtol=0)


def test_images_leave_the_batch_one_by_one():
    # Without this the test above would not see what happens to those that stay.
    model = make_model("amortised")
    search = Refinement(samples=3, learning_rate=0.1, window=5, tolerance=0.3, patience=1, max_steps=100)
    result = inference_gaps(model, make_split(model, 7), search, importance_samples=1, elbo_samples=1, seed=2)
    assert len(set(result["gap_steps"].tolist())) > 2


@pytest.mark.parametrize(("samples", "elbo_samples"), [(1, 1), (620, 7), (7, 620)])
@pytest.mark.parametrize("transform", ["plain", "logit"])
def test_the_numbers_are_spelled_out(samples, elbo_samples, transform):
    model = make_model("amortised")
    split = make_split(model, 4, transform)
    x, _ = whole(model, split)
    log_det = split.batch(0, 4).log_det
    result = inference_gaps(model, split, QUICK, importance_samples=samples, elbo_samples=elbo_samples, seed=9)
    optimum = optimise_posterior(model, x, None, torch.arange(4), QUICK, seed=9)
    noise = image_noise(model, range(4), seed=9)
    noise = torch.cat([noise(f"importance/{block}", 500) for block in range(2)])
    joint = model.joint(x)
    with torch.no_grad():
        log_w = {}
        for name, q in (("elbo", model.infer(joint)), ("elbo_optimal", optimum.q)):
            z = q.transform(noise)[0]
            log_w[name] = joint.log_prob(z) - q.log_prob(z) + log_det
    expected = {name: value[:elbo_samples].mean(0) for name, value in log_w.items()}
    expected["log_likelihood"] = torch.logsumexp(log_w["elbo_optimal"][:samples], 0) - math.log(samples)
    for name in DENSITIES:
        torch.testing.assert_close(result[name], expected[name], atol=1e-8, rtol=1e-8)
    assert (log_det.abs().min() > 1) == (transform == "logit")
    torch.testing.assert_close(result["gap_steps"], optimum.steps.double())


def test_another_seed_gives_other_noise():
    model = make_model("amortised")
    split = make_split(model)
    run = partial(inference_gaps, model, split, QUICK, importance_samples=3, elbo_samples=3)
    assert ((run(seed=0)["elbo"] - run(seed=1)["elbo"]).abs() > 1e-6).all()


# -- the search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7, 10, 13])
def test_a_search_that_is_cut_short_is_flagged(steps):
    model = make_model("amortised")
    search = Refinement(window=10, max_steps=steps)
    result = inference_gaps(model, make_split(model), search, importance_samples=5, elbo_samples=5, seed=0)
    assert not result["gap_converged"].any()
    assert unconverged_share(result["gap_converged"]) == 1
    assert (result["gap_steps"] == steps).all()
    assert (result["gap_amortisation"] > 0).all()


@pytest.mark.parametrize(("rate", "steps"), [(20.0, 2), (1e6, 50), (1e200, 50)])
def test_steps_that_are_far_too_long_change_nothing(rate, steps):
    model = make_model("amortised")
    search = Refinement(learning_rate=rate, window=2, max_steps=steps)
    result = inference_gaps(model, make_split(model), search, importance_samples=5, elbo_samples=5, seed=0)
    assert torch.equal(result["elbo_optimal"], result["elbo"])
    assert not result["gap_converged"].any()  # what ends in overflow has not


def test_an_image_that_has_no_posterior_harms_no_other():
    class Broken(Amortised):
        def forward(self, joint: Any) -> DiagonalNormal:
            q = super().forward(joint)
            first = joint.x[:, 0, 0, 0] == pixel
            return DiagonalNormal(torch.where(first[:, None], torch.nan, q.mean), q.log_variance)

    usual, model = make_model("amortised"), make_model(Posterior(Broken))
    split = make_split(model)
    pixel = split.batch(0, 1).x[0, 0, 0, 0]
    search = Refinement(learning_rate=0.05, window=10, max_steps=2000)
    result, expected = (
        inference_gaps(m, split, search, importance_samples=5, elbo_samples=5, seed=0) for m in (model, usual)
    )
    assert result["gap_converged"].tolist() == [False, True, True, True, True]
    for name, value in result.items():
        torch.testing.assert_close(value[1:], expected[name][1:], atol=1e-6, rtol=0, equal_nan=True)
        assert name in ("gap_steps", "gap_converged") or value[0].isnan()


def test_the_learning_rate_falls():
    # At the first rate alone the mean would jump about its optimum in steps of 0.5.
    model = make_model("amortised", network="linear")
    x, _ = whole(model, make_split(model))
    p = exact_posterior(model, x, None)
    optimum = optimise_posterior(model, x, None, torch.arange(5), Refinement(learning_rate=0.5), seed=0)
    variance = 1 / torch.diagonal(p.precision_matrix, dim1=-2, dim2=-1)
    best = kl_divergence(MultivariateNormal(p.mean, torch.diag_embed(variance)), p)
    assert (kl_divergence(normal(optimum.q), p) - best < 0.01).all()


def test_input_is_checked():
    for name in ("samples", "window", "patience", "max_steps"):
        for value in (0, -1, 1.5, True):
            with pytest.raises(InputError, match=rf"evaluation\.gap\.{name} "):
                Refinement(**{name: value})
    for name in ("learning_rate", "tolerance"):
        for value in (0, -0.1, math.inf, math.nan, "1"):
            with pytest.raises(InputError, match=rf"evaluation\.gap\.{name} "):
                Refinement(**{name: value})
    model = make_model("amortised")
    for name in SAMPLES:
        with pytest.raises(InputError, match=name):
            inference_gaps(model, make_split(model), QUICK, seed=0, **(dict.fromkeys(SAMPLES, 1) | {name: 0}))


def test_it_stops_when_asked_and_tells_how_far_it_is():
    model = make_model("amortised")
    split = make_split(model, 5)
    run = partial(inference_gaps, model, split, QUICK, importance_samples=1, elbo_samples=1, seed=0, batch=2)
    monitor = RecordingMonitor()
    run(monitor=monitor)
    assert monitor.advanced == [2, 2, 1]
    stop = ShutdownSignal()
    stop.signum = signal.SIGTERM
    with pytest.raises(Interrupted):
        run(monitor=Monitor(stop))
