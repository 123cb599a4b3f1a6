"""Every posterior and estimator at the edges: right to rounding, or not finite, which the trainer stops on by name.

In single precision, as real training is; what is right is computed in double precision from the same numbers.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from support.models.edges import EPS, doubled, drift, joint_of, make, set_log_variance
from support.models.members import ESTIMATORS, LIKELIHOODS, POSTERIORS, Network, Posterior, make_data, make_model, mlp
from torch import Tensor

from vaerun.data.dataset import Batch
from vaerun.distributions import PrecisionNormal
from vaerun.errors import InputError, RunError
from vaerun.estimators import Estimator, elbo, elbo_mc, estimate, renyi
from vaerun.estimators.multisample import NEAR_ONE, importance_weighted_bound
from vaerun.evaluation.likelihood.importance import importance_statistics
from vaerun.inference import Laplace
from vaerun.inference.factor import cholesky, factor_and_inverse
from vaerun.models import LatentModel
from vaerun.nets import MLPDecoder, MLPEncoder
from vaerun.objectives import Variational
from vaerun.training import TrainSettings
from vaerun.training.finite_guard import FiniteGuard
from vaerun.training.step import make_optimisers, update

pytestmark = pytest.mark.usefixtures("single_precision")
likelihoods = pytest.mark.parametrize("likelihood", LIKELIHOODS)
HEADED = [name for name in POSTERIORS if not name.startswith("laplace") and not name.endswith("0")]
"""Posteriors that read a log-variance off the encoder, without those that are the amortised one again."""
VARIANCES = [("gaussian", 0.3), ("gaussian", 1e-2), ("gaussian", 1e-4), ("bernoulli", None)]


# -- single beside double precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", [*POSTERIORS, "draw"])
@pytest.mark.parametrize(("likelihood", "variance"), VARIANCES)
def test_single_precision_drifts_by_rounding_alone(posterior, likelihood, variance):
    model = make(posterior, likelihood)
    if variance is not None:
        with torch.no_grad():
            model.likelihood.log_variance.fill_(math.log(variance))
    x, _ = make_data(model, 6)
    assert max(drift(model, x).values()) < 30


def test_images_of_a_real_size_drift_no_further():
    """784 pixels and 200 units: the samples' likelihood goes through G = W'W / s2, about their mean."""
    wide = Network((1, 28, 28), partial(MLPEncoder, hidden=[50]), partial(MLPDecoder, hidden=[200]))
    model = make_model("laplace2", network=wide, d=10)
    with torch.no_grad():
        model.likelihood.log_variance.fill_(math.log(1e-2))
        model.decoder.stack.layers[0].bias.fill_(3.0)  # all samples have much in common ...
        x = model.decode_mean(torch.randn(3, 10)) + 0.1 * torch.randn(3, 1, 28, 28)  # ... and it fits the images
    assert max(drift(model, x).values()) < 30


@pytest.mark.parametrize("posterior", POSTERIORS)
@likelihoods
@pytest.mark.parametrize("network", ["linear", "mlp"])
def test_more_latent_dimensions_than_pixels(posterior, likelihood, network):
    """d = 20 of 12 pixels: with a linear decoder 8 directions are the prior's alone."""
    chosen = POSTERIORS[posterior]
    if posterior.startswith("iaf"):
        chosen = Posterior(partial(chosen.make, hidden=[20]))
    model = make_model(chosen, likelihood, network, d=20)
    x, _ = make_data(model, 6)
    assert max(drift(model, x).values()) < 30
    result = estimate(elbo_mc, model.infer, joint_of(model, x), 2)
    result.surrogate.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("posterior", POSTERIORS)
@likelihoods
def test_dead_units_leave_the_prior(posterior, likelihood):
    """No hidden unit of encoder or decoder is alive: x says nothing of z, and every number is finite."""
    model = make_model(posterior, likelihood, "relu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".stack." in name and name.endswith("bias"):
                parameter.fill_(-1e3)
    x, _ = make_data(model, 4)
    joint = joint_of(model, x)
    q = model.infer(joint)
    if posterior.startswith("laplace"):
        torch.testing.assert_close(q.cholesky, torch.eye(3).expand(4, 3, 3))
    result = elbo_mc(joint, q, 3)
    assert result.bound.isfinite().all()
    result.surrogate.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def attempt(model: LatentModel, x: Tensor, estimator: Estimator, samples: int) -> str | None:
    """One training step; what it was stopped with, or None."""
    objective = Variational(model, estimator, samples)
    optimiser = make_optimisers(objective.phases, TrainSettings(seed=0, epochs=1, batch_size=4, learning_rate=1e-3))
    torch.manual_seed(0)
    loss, metrics = objective.loss("model", 6, Batch(x, None, 0, torch.zeros(len(x)), torch.arange(len(x))))
    try:
        guard = FiniteGuard(torch.device("cpu"))
        update(optimiser["model"], loss.mean(), metrics, clip_norm=None, guard=guard, step=6)
    except RunError as stopped:
        return str(stopped)
    return None


# -- estimators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("posterior", "estimator"),
    [(p, e) for p in HEADED for e in ESTIMATORS if POSTERIORS[p].closed_kl or not ESTIMATORS[e].closed_kl],
)
@pytest.mark.parametrize("log_variance", [-1000.0, -20.0, 20.0, 200.0])
def test_a_posterior_at_the_edge_is_right_or_stops_training(posterior, estimator, log_variance):
    """The bound equals that of double precision, or the step is refused and says that the posterior is why."""
    method, model = ESTIMATORS[estimator], make(posterior)
    if posterior == "semi2":
        model.inference.step_size = 1e-6  # else it leaves the edge
    set_log_variance(model, log_variance)
    x, _ = make_data(model, 4)
    k = max(2, method.minimum_samples)
    single, double = (
        estimate(method.make(), one.infer, joint_of(one, x), k).bound.detach() for one in (model, doubled(model))
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stopped = attempt(model, x, method.make(), k)
    if stopped is None:
        assert ((single - double).abs() / (double.abs() + 12)).max() < 1e-4
        assert all(value.isfinite().all() for value in model.state_dict().values())
    else:
        assert "the term 'kl' is not finite" in stopped or "the term 'gradient' is not finite" in stopped
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    if abs(log_variance) == 20 and posterior != "iaf2":  # which inverts its steps no longer
        assert stopped is None


def test_weights_that_are_zero_or_equal():
    log_w = torch.tensor([[-math.inf, -3e4, 0.0], [-5.0, -3e4, -math.inf], [-math.inf, -3e4, -1e4]])
    bound = importance_weighted_bound(log_w)
    assert bound.tolist() == pytest.approx([-5 - math.log(3), -3e4, -math.log(3)])
    assert importance_weighted_bound(torch.full((3, 2), -math.inf)).tolist() == [-math.inf] * 2  # not NaN


@pytest.mark.parametrize("alpha", [1 - 1e-12, 1 + 1e-5, 1 - 0.9 * NEAR_ONE * EPS])
def test_a_renyi_order_next_to_one_is_refused(alpha):
    model = make("amortised")
    joint = joint_of(model, make_data(model, 4)[0])
    with pytest.raises(InputError, match=r"estimator\.alpha=.*use estimator=elbo_mc"):
        renyi(joint, model.infer(joint), 5, alpha=alpha)


@pytest.mark.parametrize("alpha", [1 - 1.1 * NEAR_ONE * EPS, 1 + 1.1 * NEAR_ONE * EPS, 100.0, -100.0])
def test_the_orders_that_are_left_keep_their_digits(alpha):
    model = make("amortised")
    x, _ = make_data(model, 4)
    single, double = (
        renyi(joint, one.infer(joint), 50, alpha=alpha).bound
        for one in (model, doubled(model))
        for joint in [joint_of(one, x)]
    )
    assert (single - double).abs().max() < 2e-3


def test_refinement_stays_where_the_bound_is_flat():
    """A decoder that ignores z, and q the prior: the gradient is zero, to be clipped and differentiated through."""
    model = make("semi2")
    with torch.no_grad():
        model.decoder.affine.weight.zero_()
        for layer in (model.inference.base.mean, model.inference.base.log_variance):
            layer.weight.zero_()
            layer.bias.zero_()
    joint = joint_of(model, make_data(model, 4)[0])
    q = model.infer(joint)
    assert q.mean.abs().max() == 0 == q.log_variance.abs().max()
    elbo(joint, q, 1).surrogate.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# -- the precision of Laplace inference -------------------------------------------------------------------------------


def steep(variance: float, d: int = 30) -> tuple[LatentModel, Tensor]:
    """VLAE with more latent dimensions than pixels: the precision's smallest eigenvalue is the prior's, 1."""
    model = make_model(Posterior(partial(Laplace, steps=2)), network=mlp([40], "relu"), d=d)
    with torch.no_grad():
        model.likelihood.log_variance.fill_(math.log(variance))
    return model, make_data(model, 6)[0]


def test_where_the_factor_exists_it_is_torchs_own():
    """Nothing is added to the diagonal, however near singular the precision is."""
    for variance in (1.0, 1e-3, 1e-5):
        model, x = steep(variance)
        with torch.no_grad():
            joint = joint_of(model, x)
            precision = joint.linearise(torch.randn(6, 30)).precision
        assert torch.equal(cholesky(precision), torch.linalg.cholesky(precision))


def test_the_factor_needs_no_control_flow():
    """Rows with and without one, mapped as replicas are: the same as one by one."""
    good = torch.eye(3) + 0.1
    stacked = torch.stack([torch.stack([good, -good]), torch.stack([2 * good, good])])
    result = torch.vmap(cholesky)(stacked)
    assert result.isnan().all(-1).all(-1).tolist() == [[False, True], [False, False]]
    torch.testing.assert_close(result, torch.stack([cholesky(rows) for rows in stacked]), equal_nan=True)


def test_a_precision_without_a_factor_stops_training_by_name():
    model, x = steep(1e-10)
    with torch.no_grad():
        joint = joint_of(model, x)
        assert torch.linalg.cholesky_ex(joint.linearise(torch.randn(6, 30)).precision).info.max() > 0
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for estimator in (elbo, elbo_mc):
        stopped = attempt(model, x, estimator, 1)
        assert stopped is not None
        assert "step 7: the term 'kl' is not finite" in stopped
        assert "no Cholesky factor" in stopped
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert attempt(*steep(1e-3), elbo, 1) is None


def test_one_image_without_a_factor_is_lost_alone():
    """Its row is NaN in all that is evaluated; the others are what they are without it."""
    model, x = steep(1e-3)
    joint = joint_of(model, x)
    with torch.no_grad():
        q = model.infer(joint)
        precision = q.cholesky @ q.cholesky.mT
        full = importance_statistics(joint, PrecisionNormal(q.mean, *factor_and_inverse(precision)), 50)
        precision[2] = -torch.eye(30)
        part = importance_statistics(joint, PrecisionNormal(q.mean, *factor_and_inverse(precision)), 50)
    rest = torch.arange(6) != 2
    for name, value in part.items():
        assert value[2].isnan(), name
        torch.testing.assert_close(value[rest], full[name][rest])
