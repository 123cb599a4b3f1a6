"""The objective of likelihood models: its loss, its metrics, and the options of the KL."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support.models.members import (
    CONTEXTS,
    ESTIMATORS,
    POSTERIORS,
    Posterior,
    has_closed_kl,
    image_noise,
    make_data,
    make_estimator,
    make_model,
)
from torch import Tensor

from vaerun.data.dataset import Batch
from vaerun.distributions import kl_by_dimension
from vaerun.errors import InputError
from vaerun.estimators import Estimate, Estimator, elbo, elbo_mc, estimate, reconstruction, stl
from vaerun.inference import Deterministic
from vaerun.models import Joint, LatentModel
from vaerun.objectives import KLWarmup, Variational

contexts = pytest.mark.parametrize("context", CONTEXTS)
WITH_OPTIONS = {name: method.make() for name, method in ESTIMATORS.items() if method.kl_options}
with_options = pytest.mark.parametrize("estimator", WITH_OPTIONS)


def make_batch(model: LatentModel, n: int = 4) -> Batch:
    x, _ = make_data(model, n)
    return Batch(x, torch.arange(n) % 3, 3, torch.linspace(-7, 5, n), torch.arange(n))


def loss(model: LatentModel, estimator: Estimator, step: int = 0, **options) -> tuple[Tensor, dict[str, Tensor]]:
    """Of one batch, the same noise every time."""
    torch.manual_seed(4)
    return Variational(model, estimator, 3, **options).loss("model", step, make_batch(model))


def direct(model: LatentModel, estimator: Estimator) -> Estimate:
    """The same without an objective."""
    batch = make_batch(model)
    torch.manual_seed(4)
    joint = model.joint(batch.x, batch.c if model.classes else None)
    return estimate(estimator, model.infer, joint, 3)


@contexts
@pytest.mark.parametrize("posterior", ["amortised", "iaf2", "laplace2"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_metrics_and_loss(estimator, posterior, context):
    method = ESTIMATORS[estimator]
    if method.closed_kl and not has_closed_kl(posterior, context):
        return
    model = make_model(posterior, context=context)
    result, log_det = direct(model, make_estimator(estimator)), make_batch(model).log_det
    value, metrics = loss(model, make_estimator(estimator))
    torch.testing.assert_close(value, -result.surrogate)  # log|det| is no function of the parameters
    assert metrics.keys() == {"reconstruction", "kl", "elbo", method.name}
    terms = result.terms
    torch.testing.assert_close(metrics["kl"], terms["kl"])
    torch.testing.assert_close(metrics["reconstruction"], terms["reconstruction"] + log_det)
    torch.testing.assert_close(metrics["elbo"], terms["reconstruction"] - terms["kl"] + log_det)
    torch.testing.assert_close(metrics[method.name], result.bound + log_det)
    if method.name != "elbo":
        assert ((metrics[method.name] - metrics["elbo"]).abs() > 1e-3).all()
    assert value.requires_grad
    assert all(m.shape == (4,) and not m.requires_grad for m in metrics.values())


def test_metrics_of_an_autoencoder():
    model = make_model(Posterior(Deterministic))
    value, metrics = loss(model, reconstruction)
    assert metrics.keys() == {"reconstruction"}
    torch.testing.assert_close(metrics["reconstruction"], -value.detach() + make_batch(model).log_det)


def test_the_phase_has_the_models_parameters():
    model = make_model("amortised")
    objective = Variational(model, elbo, 1)
    assert objective.phases.keys() == {"model"}
    phase = objective.phases["model"]
    assert phase.repeats == 1
    results = [p for group in phase.groups.values() for p in group]
    assert {id(p) for p in results} == {id(p) for p in model.parameters()}


def test_a_running_mean_is_in_the_checkpoint_and_follows_the_mode():
    model = make_model("amortised")
    estimator = ESTIMATORS["score_mean"].make()
    objective = Variational(model, estimator, 3)
    assert {"estimator.weighted_sum", "estimator.weight"} <= objective.state_dict().keys()
    objective.eval().loss("model", 0, make_batch(model))
    assert estimator.weight == 0
    objective.train().loss("model", 0, make_batch(model))
    assert estimator.weight > 0


# -- the KL's weight --------------------------------------------------------------------------------------------------


def test_the_weight_grows_linearly_from_zero():
    warm_up = KLWarmup(0.8, 40)
    assert [warm_up(step) for step in (0, 1, 10, 20, 39, 40, 41, 10**6)] == pytest.approx(
        [0, 0.02, 0.2, 0.4, 0.78, 0.8, 0.8, 0.8], abs=1e-12
    )


@with_options
@pytest.mark.parametrize("weight", [0.0, 0.3, 4.0])
def test_the_weight_is_of_the_surrogates_kl_alone(estimator, weight):
    model = make_model("amortised")
    plain = direct(model, WITH_OPTIONS[estimator])
    result = direct(model, partial(WITH_OPTIONS[estimator], kl_weight=weight))
    torch.testing.assert_close(result.bound, plain.bound, rtol=0, atol=0)
    torch.testing.assert_close(result.terms, plain.terms, rtol=0, atol=0)
    torch.testing.assert_close(result.surrogate, plain.terms["reconstruction"] - weight * plain.terms["kl"])
    torch.testing.assert_close(plain.surrogate, plain.bound)


@with_options
@pytest.mark.parametrize("posterior", ["amortised", "laplace2"])
def test_warm_up_in_training(estimator, posterior):
    model, chosen = make_model(posterior), WITH_OPTIONS[estimator]
    _, plain = loss(model, chosen)
    for step, weight in {0: 0.0, 5: 0.3, 10: 0.6, 25: 0.6}.items():
        value, metrics = loss(model, partial(chosen, kl_weight=9.0), step, kl_warmup=KLWarmup(0.6, 10))
        torch.testing.assert_close(metrics.pop("kl_weight"), torch.full((4,), weight))
        torch.testing.assert_close(metrics, plain, rtol=0, atol=0)  # the reported ELBO has weight 1
        expected = plain["reconstruction"] - make_batch(model).log_det - weight * plain["kl"]
        torch.testing.assert_close(-value, expected)


# -- free bits --------------------------------------------------------------------------------------------------------


def dimensions(model: LatentModel) -> tuple[Tensor, Tensor]:
    """KL of each dimension by formula and by the samples of `direct`, [B, d] nats each."""
    batch = make_batch(model)
    torch.manual_seed(4)
    joint = model.joint(batch.x, batch.c if model.classes else None)
    q = model.infer(joint)
    z, _ = q.transform(joint.noise("posterior", 3))
    normal = torch.distributions.Normal
    log_q = normal(q.mean, q.variance.sqrt()).log_prob(z)
    log_prior = normal(joint.prior.mean, joint.prior.variance.sqrt()).log_prob(z)
    return kl_by_dimension(q, joint.prior).detach(), (log_q - log_prior).mean(0).detach()


FACTORISED = ["amortised", "iaf0", "semi2"]


@with_options
@contexts
@pytest.mark.parametrize("posterior", FACTORISED)
def test_free_bits_are_the_published_formula(estimator, posterior, context):
    model = make_model(posterior, context=context)
    by_dimension = dimensions(model)[estimator != "elbo"]
    means = by_dimension.mean(0)
    plain = direct(model, WITH_OPTIONS[estimator])
    torch.testing.assert_close(by_dimension.sum(1), plain.terms["kl"])
    levels = [0.5 * float(means.min().clamp(min=0.02)), float(means.median()) + 1e-3, float(means.max()) + 1.0]
    for level in levels:
        result = direct(model, partial(WITH_OPTIONS[estimator], free_bits=level, kl_weight=0.7))
        torch.testing.assert_close(result.bound, plain.bound, rtol=0, atol=0)
        torch.testing.assert_close(result.terms, plain.terms, rtol=0, atol=0)
        kl = (plain.terms["reconstruction"] - result.surrogate) / 0.7
        torch.testing.assert_close(kl.mean(), means.clamp(min=level).sum())
    torch.testing.assert_close(kl, torch.full((4,), 3 * levels[-1]))  # none is used: the same for every image


@pytest.mark.parametrize("estimator", ["elbo", "elbo_mc"])
def test_free_bits_stop_the_gradient_of_unused_dimensions(estimator):
    model = make_model("amortised")
    heads = [model.inference.mean.weight, model.inference.log_variance.weight]  # [d, features]
    means = dimensions(model)[estimator != "elbo"].mean(0)
    level = float(means.median()) + 1e-3
    used = means > level
    assert 0 < used.sum() < 3

    def kl_gradients(**options: float) -> list[Tensor]:
        result = direct(model, partial(WITH_OPTIONS[estimator], **options))
        return list(torch.autograd.grad((result.terms["reconstruction"] - result.surrogate).mean(), heads))

    for free, plain in zip(kl_gradients(free_bits=level), kl_gradients(), strict=True):
        torch.testing.assert_close(free[used], plain[used])
        assert plain[~used].abs().max() > 1e-3
        assert (free[~used] == 0).all()


@with_options
@contexts
@pytest.mark.parametrize(
    "posterior", [name for name in POSTERIORS if name not in (*FACTORISED, "householder0", "semi0")]
)
def test_free_bits_need_independent_dimensions(estimator, posterior, context):
    model = make_model(posterior, context=context)
    if estimator == "elbo" and not has_closed_kl(posterior, context):
        return  # rejected: there is no closed form
    with pytest.raises(InputError, match=r"free_bits.*independent dimensions") as refusal:
        direct(model, partial(WITH_OPTIONS[estimator], free_bits=0.1))
    assert "\n" not in str(refusal.value)


def test_held_free_bits_take_the_path_alone():
    # STL's KL by dimension has log q detached: the gradient is elbo_mc's less the score of active dimensions.
    model = make_model("amortised")
    batch = make_batch(model)
    noise = image_noise(model, range(4))
    parameters = [model.inference.mean.weight, model.inference.log_variance.weight]

    def joint() -> Joint:
        return model.joint(batch.x, None, noise)

    q = model.infer(joint())
    z = q.transform(noise("posterior", 3))[0].detach()
    log_q = q.log_prob_by_dimension(z)
    means = (log_q - joint().prior.log_prob_by_dimension(z)).mean((0, 1)).detach()
    level = float(means.median()) + 1e-3
    assert 0 < (means > level).sum() < 3
    score = (log_q * (means > level)).mean(0).sum()
    results = [estimate(e, model.infer, joint(), 3, free_bits=level).surrogate.sum() for e in (elbo_mc, stl)]
    difference = torch.autograd.grad(results[1] - results[0] - score, parameters, retain_graph=True)
    assert all(g.abs().max() < 1e-9 for g in difference)
    assert max(g.abs().max() for g in torch.autograd.grad(score, parameters)) > 1e-2
