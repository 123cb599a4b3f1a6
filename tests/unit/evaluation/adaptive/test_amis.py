"""Adaptive importance sampling and its bracket against exact likelihoods and quadrature.

The estimate's standard error, to first order, is sqrt(1 / ESS - 1 / K).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.models.annealing import linear_gaussian, make_split, standard_error
from support.models.folded import folded, images_at, quadrature
from support.models.members import TRANSFORMS, Posterior, exact_marginal, make_model
from torch import Tensor

from vaerun.errors import InputError, Interrupted
from vaerun.evaluation import importance_sampling
from vaerun.evaluation.adaptive.adaptation import Amis, adapt_proposal
from vaerun.evaluation.adaptive.amis import adaptive_importance_sampling, amis_bracket
from vaerun.evaluation.adaptive.estimate import estimate
from vaerun.evaluation.adaptive.mixture import EXTRA_NOISE
from vaerun.evaluation.adaptive.mode_search import find_modes
from vaerun.evaluation.likelihood.annealed import simulate
from vaerun.inference import Deterministic
from vaerun.models import LatentModel
from vaerun.randomness import ImageNoise
from vaerun.signals import ShutdownSignal
from vaerun.tracking.monitor import Monitor

CRUDE = Amis(samples=2, starts=2, max_starts=4, rounds=1, max_rounds=1, round_samples=16)


def error_of(result: dict[str, Tensor], samples: int) -> Tensor:
    return (1 / result["amis_ess"] - 1 / samples).clamp(min=0).sqrt()


def exact_of(model: LatentModel, x: Tensor, c: Tensor | None) -> Tensor:
    """log p(x | c) [B] of a linear-Gaussian model, or of a folded one by quadrature."""
    if model.decoder.stack.layers:
        return quadrature(model, x)[0]
    return exact_marginal(model, c, len(x)).log_prob(x.flatten(1)).detach()


# -- the estimate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d", "context", "transform", "images", "samples"),
    [
        (1, "plain", "plain", 16, 2000),
        (1, "label_prior", "logit", 16, 2000),
        (16, "plain", "logit", 16, 4000),
        (16, "label", "plain", 16, 4000),
        pytest.param(64, "label_prior", "plain", 48, 8000, marks=pytest.mark.slow),
    ],
)
def test_a_linear_decoder_has_its_exact_likelihood(d, context, transform, images, samples):
    model = linear_gaussian(context, d=d)
    split = make_split(model, images, TRANSFORMS[transform])
    batch = split.batch(0, images)
    c = batch.c.double() if model.classes else None
    exact = exact_of(model, batch.x.double(), c) + batch.log_det
    for posterior_start in (True, False)[: 1 if d == 64 else 2]:
        result = adaptive_importance_sampling(
            model, split, Amis(samples=samples), seed=0, posterior_start=posterior_start
        )
        assert ((result["amis"] - exact).abs() < 4 * error_of(result, samples) + 1e-4).all()
        assert abs((result["amis"] - exact).mean()) < 0.01
        assert (result["amis_pareto_k"] < 0.7).all()
        assert all(value.dtype == torch.float64 and value.shape == (images,) for value in result.values())


FOLDED = {
    "two": ((1, "gaussian", "tanh"), 2),
    "four": ((2, "gaussian", "relu"), 3),
    "four_in_a_row": ((1, "gaussian", "relu", True), 4),
    "four_binary": ((2, "bernoulli", "relu"), 3),
    "two_binary": ((1, "bernoulli", "tanh"), 1),  # some of whose modes have merged
    "four_smooth": ((2, "gaussian", "tanh"), 3),
    "two_sharp": ((1, "gaussian", "relu"), 2),
    "four_smooth_binary": ((2, "bernoulli", "tanh"), 1),
    "four_binary_in_a_row": ((1, "bernoulli", "relu", True), 2),
}
SLOW = list(FOLDED)[4:]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in FOLDED])
def test_separated_modes_reach_quadrature_whatever_q(name):
    # q sits where no more than a small share of the posterior is.
    (d, likelihood, activation, *twice), least_modes = FOLDED[name]
    model = folded(d, likelihood, activation, q_mean=-1.3, twice=bool(twice))
    n, source = 16, torch.Generator().manual_seed(3)
    split = images_at(model, 1.1 + 0.3 * torch.rand(n, d, generator=source))
    exact = quadrature(model, split.batch(0, n).x.double())[0]
    by_q = importance_sampling(model, split, samples=500, seed=0)["log_likelihood"]
    assert (by_q - exact).mean() < -0.4
    amis = Amis(samples=3000, starts=16, max_rounds=6)
    for posterior_start in (True, False):
        result = adaptive_importance_sampling(model, split, amis, seed=0, posterior_start=posterior_start)
        assert ((result["amis"] - exact).abs() < 4 * error_of(result, amis.samples) + 1e-4).all()
        assert abs((result["amis"] - exact).mean()) < 0.01
        assert (result["amis_modes"] >= least_modes).all()


# -- the bracket ------------------------------------------------------------------------------------------------------


def less_truth(model: LatentModel, amis: Amis, images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Both sides of the bracket less the truth, [N] nats each."""
    result = amis_bracket(model, amis, images=images, seed=seed)
    assert result.keys() == {"amis_lower", "amis_upper"}
    x, _, c = simulate(model, list(range(images)), seed)
    exact = exact_of(model, x, c)
    return result["amis_lower"] - exact, result["amis_upper"] - exact


KNOWN = {
    "linear": lambda: linear_gaussian("plain", d=6),
    "labels": lambda: linear_gaussian("label_prior", d=8),
    "folded": lambda: folded(1),
    "bernoulli": lambda: folded(1, "bernoulli"),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("images", [1000, pytest.param(4000, marks=pytest.mark.slow)])
def test_the_mean_weight_is_unbiased_and_its_logarithm_a_bound(name, images):
    # E[mean w] = p(x) for every proposal that its own samples have not made; and, with the latent of x counted among
    # the samples, E[1 / mean w] = 1 / p(x). Few samples and a poor proposal, so that either would show a mistake.
    lower, upper = less_truth(KNOWN[name](), CRUDE, images, seed=1)
    for weight in (lower.exp(), (-upper).exp()):
        error = standard_error(weight)
        assert error < 2 / images**0.5
        assert abs(weight.mean() - 1) < 4 * error
    assert lower.mean() < 4 * standard_error(lower)
    assert upper.mean() > -4 * standard_error(upper)
    assert upper.mean() - lower.mean() > 0.02  # not both are tight


@pytest.mark.parametrize("name", KNOWN)
def test_the_bracket_shrinks_around_the_truth(name):
    widths = []
    for samples in (2, 200):
        lower, upper = less_truth(KNOWN[name](), replace(CRUDE, samples=samples, starts=8, max_starts=16), 100, seed=2)
        assert lower.mean() < 4 * standard_error(lower)
        assert upper.mean() > -4 * standard_error(upper)
        widths.append(float((upper - lower).mean()))
    assert widths[0] > 0.03
    assert widths[1] < widths[0] / 4


def test_a_bracket_is_wide_where_a_mode_was_missed():
    model = folded(1, activation="relu", q_mean=-1.3)
    blind = Amis(samples=1000, starts=1, max_starts=1, rounds=1, max_rounds=1)
    lower, upper = less_truth(model, blind, 60, seed=0)
    missed = lower < -0.5
    assert 10 < missed.sum() < 50
    assert (upper[missed] > 5).double().mean() > 0.5
    assert upper[~missed].mean() < 0.5
    lower, upper = less_truth(model, replace(blind, starts=8, max_starts=16), 60, seed=0)
    assert (upper - lower).mean() < 0.1


def test_k_hat_cannot_see_a_missed_mode():
    # Why there are starts from the prior, and a bracket: q's own mode is the lesser one, and all looks well.
    model = folded(1, activation="relu")
    n = 10
    x = images_at(model, torch.full((n, 1), 1.2)).batch(0, n).x.double()
    exact, masses = quadrature(model, x)
    joint, noise = model.joint(x), ImageNoise(0, range(n), 1 + EXTRA_NOISE, model.mean)
    amis = Amis()
    for side, visible in ((-1.2, masses[:, 0]), (1.2, masses[:, 1])):
        start = torch.full((1, n, 1), side)
        with torch.no_grad():
            modes = find_modes(
                joint, start, lambda i, j, z=start: z.expand(j - i, n, 1), starts=2, max_starts=4, chunk=99
            )
            proposal, _, _ = adapt_proposal(joint, modes, noise, amis, chunk=9999)
            values = estimate(joint, proposal, noise, amis.samples, chunk=9999)
        torch.testing.assert_close(values["log_likelihood"], visible, atol=0.05, rtol=0)
        assert (values["pareto_k"] < 0.7).double().mean() > 0.5
    assert (exact - masses[:, 0]).mean() > 2


# -- what callers rely on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["samples", "temperatures", "starts", "max_starts", "rounds", "max_rounds", "round_samples"]
)
def test_settings_out_of_range_are_named(key):
    for value in (0, -1, 2.5, True, None, "8"):
        with pytest.raises(InputError, match=rf"evaluation\.amis\.{key} must be"):
            Amis(**{key: value})
    assert getattr(Amis(**{key: 1}), key) == 1


def test_models_that_it_cannot_evaluate_are_refused():
    for model, reason in (
        (make_model(network="linear", d=1001), "up to 1000 latent dimensions"),
        (make_model(Posterior(Deterministic)), "plain autoencoder"),
    ):
        with pytest.raises(InputError, match=reason):
            adaptive_importance_sampling(model, make_split(model, 2), CRUDE, seed=0)
        with pytest.raises(InputError, match=reason):
            amis_bracket(model, CRUDE, images=2, seed=0)


def test_a_stop_is_obeyed():
    model = make_model()
    stop = ShutdownSignal()
    stop.signum = 2
    with pytest.raises(Interrupted):
        adaptive_importance_sampling(model, make_split(model, 3), CRUDE, seed=0, monitor=Monitor(stop))
    with pytest.raises(Interrupted):
        amis_bracket(model, CRUDE, images=3, seed=0, monitor=Monitor(stop))
