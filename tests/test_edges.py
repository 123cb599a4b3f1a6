"""Models and estimators where numbers under- or overflow: right to rounding, or not finite, which the trainer stops on.

In single precision, as real training is. What is right is computed in double precision from the same numbers.
"""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from draw import draw
from members import ESTIMATORS, LIKELIHOODS, POSTERIORS, Posterior, make_data, make_model, mlp
from torch import Tensor
from torch.distributions import kl_divergence

from vaerun.data.dataset import Batch
from vaerun.distributions import AutoregressiveFlow, DiagonalNormal, HouseholderNormal, PrecisionNormal, StandardNormal
from vaerun.errors import InputError, RunError
from vaerun.estimators import elbo, elbo_mc, estimate, renyi
from vaerun.estimators.multisample import NEAR_ONE, importance_weighted_bound
from vaerun.evaluation.importance import weigh
from vaerun.inference import Laplace
from vaerun.inference.laplace import cholesky
from vaerun.inference.semi_amortised import clip_rows
from vaerun.models import Bernoulli, Gaussian, Joint, LatentModel
from vaerun.nets.draw import filterbank
from vaerun.objectives import Variational
from vaerun.randomness import ImageNoise
from vaerun.training import TrainSettings
from vaerun.training.guard import FiniteGuard
from vaerun.training.update import make_optimisers, update

pytestmark = pytest.mark.usefixtures("single_precision")
EPS = torch.finfo(torch.float32).eps
posteriors = pytest.mark.parametrize("posterior", [*POSTERIORS, "draw"])
likelihoods = pytest.mark.parametrize("likelihood", LIKELIHOODS)
HEADED = [name for name in POSTERIORS if not name.startswith("laplace")]
"""Posteriors that read a log-variance off the encoder."""


def make(posterior: str, likelihood: str = "gaussian", network: str = "mlp", **options) -> LatentModel:
    if posterior == "draw":
        return draw(likelihood=likelihood)
    return make_model(posterior, likelihood, network, **options)


def doubled(model: LatentModel) -> LatentModel:
    return copy.deepcopy(model).double()


class SameNoise:
    """The images' own noise, drawn in single precision and given in the model's."""

    def __init__(self, model: LatentModel, rows: int) -> None:
        self.source = ImageNoise(3, range(rows), model.latent_dim, torch.zeros((), dtype=torch.float32))
        self.dtype = model.mean.dtype

    def __call__(self, stream: str, k: int) -> Tensor:
        return self.source(stream, k).to(self.dtype)


def joint_of(model: LatentModel, x: Tensor) -> Joint:
    return model.joint(x.to(model.mean.dtype), None, SameNoise(model, len(x)))


def set_log_variance(model: LatentModel, value: float) -> None:
    """q's log-variance everywhere, before refinement."""
    inference = model.inference
    layer = inference.log_variance if hasattr(inference, "log_variance") else inference.base.log_variance
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(value)


# -- likelihoods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [20.0, 89.0, 1000.0, 1e30])
def test_bernoulli_logits_of_any_size(size):
    eta = torch.tensor([[size, size, -size, -size]]).reshape(1, 1, 2, 2).requires_grad_()
    x = torch.tensor([1.0, 0.0, 1.0, 0.0]).reshape(1, 1, 2, 2)
    likelihood = Bernoulli()
    value = likelihood.log_prob(x, eta)
    assert value.item() == pytest.approx(-2 * size, rel=1e-6)
    (gradient,) = torch.autograd.grad(value.sum(), eta)
    assert gradient.flatten().tolist() == pytest.approx([0, -1, 1, 0], abs=1e-8)
    torch.testing.assert_close(likelihood.score(x, eta), gradient, atol=1e-8, rtol=0)
    assert likelihood.fisher(eta).abs().max() < 1e-8
    assert likelihood.mean(eta).flatten().tolist() == pytest.approx([1, 1, 0, 0], abs=1e-8)


@pytest.mark.parametrize("variance", [1e-12, 1e-6, 1.0, 1e6, 1e12])
@pytest.mark.parametrize("distance", [0.0, 1e-4, 1.0])
def test_gaussian_variances_that_a_setting_may_have(variance, distance):
    x, eta = torch.full((1, 1, 8, 8), 0.25), torch.full((1, 1, 8, 8), 0.25 + distance, requires_grad=True)
    likelihood = Gaussian(variance)
    exact = torch.distributions.Normal(eta.detach().double(), variance**0.5).log_prob(x.double()).sum()
    value = likelihood.log_prob(x, eta)
    assert value.item() == pytest.approx(float(exact), rel=20 * EPS)
    gradients = torch.autograd.grad(value.sum(), [eta, likelihood.log_variance])
    assert all(g.isfinite().all() for g in gradients)
    assert gradients[0].norm().isfinite()


# -- distributions over z ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_variance", [-1000.0, -150.0, -60.0, 0.0, 60.0, 88.0])
@pytest.mark.parametrize("family", ["diagonal", "householder"])
def test_kl_and_samples_of_variances_that_vanish_or_are_huge(family, log_variance):
    mean, value = torch.randn(4, 3), torch.full((4, 3), log_variance, requires_grad=True)
    q = DiagonalNormal(mean, value) if family == "diagonal" else HouseholderNormal(mean, value, torch.randn(2, 4, 3))
    variance = math.exp(log_variance)  # 0 in float64 as well below -745, where log v is all that counts
    exact = 0.5 * (3 * (variance - 1 - log_variance) + mean.double().square().sum(-1))
    kl = kl_divergence(q, StandardNormal(mean))
    torch.testing.assert_close(kl.double(), exact, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(kl.sum(), value)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 0.5 * (variance - 1)), rtol=1e-5, atol=0)
    noise = torch.randn(5, 4, 3)
    z, log_q = q.transform(noise)
    assert z.isfinite().all()
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(noise.double()).sum(-1) - 1.5 * log_variance
    torch.testing.assert_close(log_q.double(), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("length", [0.0, 1e-40, 1e-30, 3e-13, 1e-11, 1e-3, 1e15])
def test_reflections_by_vectors_of_any_length_keep_volume(length):
    direction = torch.nn.functional.normalize(torch.randn(4, 3), dim=-1)
    vectors = (length * direction)[None].requires_grad_()
    q = HouseholderNormal(torch.randn(4, 3), torch.randn(4, 3), vectors)
    z = torch.randn(5, 4, 3)
    reflected = q.reflect(z)
    torch.testing.assert_close(reflected.norm(dim=-1), z.norm(dim=-1), rtol=1e-5, atol=0)  # else log q would be wrong
    expected = z if length < 1e-12 else z - 2 * direction * (z * direction).sum(-1, keepdim=True)
    torch.testing.assert_close(reflected, expected, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad((reflected * torch.randn_like(z)).sum(), vectors)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("condition", [1.0, 1e4, 1e8, 1e12])
def test_a_precision_of_any_condition_knows_the_density_of_its_samples(condition):
    # Rounding of z is magnified by the largest root of the precision: log q is right to eps sqrt(condition).
    d = 8
    basis = torch.linalg.qr(torch.randn(4, d, d, dtype=torch.float64)).Q
    scale = torch.logspace(0, math.log10(condition), d, dtype=torch.float64)
    factor = torch.linalg.cholesky(basis @ torch.diag_embed(scale.expand(4, d)) @ basis.mT).float()
    q = PrecisionNormal(torch.zeros(4, d), factor)
    exact = PrecisionNormal(torch.zeros(4, d, dtype=torch.float64), factor.double())
    z, log_q = q.transform(torch.randn(200, 4, d))
    assert (log_q - exact.log_prob(z.double())).abs().max() < 10 * d * EPS * max(condition**0.5, d)


def saturated(shift: float) -> AutoregressiveFlow:
    """One step whose gate is sigmoid(shift + 3/2) everywhere, with m = 1."""

    class Network(torch.nn.Module):
        backwards = False

        def forward(self, z, context):
            return torch.ones_like(z), torch.full_like(z, shift) + 0 * z

    base = DiagonalNormal(torch.randn(4, 3), torch.zeros(4, 3))
    return AutoregressiveFlow(base, torch.zeros(4, 1), [Network()])


@pytest.mark.parametrize("shift", [-1000.0, -100.0, -50.0, 50.0, 1000.0])
def test_a_flow_whose_gates_are_saturated(shift):
    q, noise = saturated(shift), torch.randn(5, 4, 3)
    z, log_q = q.transform(noise)
    z_0, log_q_0 = q.base.transform(noise)
    torch.testing.assert_close(z, z_0 if shift > 0 else torch.ones_like(z))
    torch.testing.assert_close(log_q, log_q_0 - 3 * min(shift + 1.5, 0.0))
    if shift < -89:  # the way back is lost, and says so
        assert not q.log_prob(z).isfinite().any()


@pytest.mark.parametrize("log_variance", [-40.0, 0.0, 80.0])
@pytest.mark.parametrize("centre", [-1e4, 3.0, 1e4])
@pytest.mark.parametrize("stride", [0.0, 1.0, 1e4])
def test_draws_filters_sum_to_one_wherever_the_window_is(log_variance, centre, stride):
    values = [torch.full((2,), v, requires_grad=True) for v in (centre, stride, log_variance)]
    filters = filterbank(*values, 3, 7)
    torch.testing.assert_close(filters.sum(-1), torch.ones(2, 3))
    gradients = torch.autograd.grad((filters * torch.randn(3, 7)).sum(), values)
    assert all(g.isfinite().all() for g in gradients)
    beyond = filterbank(values[0], values[1], torch.full((2,), -200.0), 3, 7)
    assert beyond.isnan().any()  # never a filter that is none


# -- single beside double precision -----------------------------------------------------------------------------------


def drift(model: LatentModel, x: Tensor, samples: int = 100) -> dict[str, float]:
    """The largest difference of a number that double precision makes, in units of eps (|log p(x|z)| + |KL| + D)."""
    found = []
    for one in (model, doubled(model)):
        with torch.no_grad():
            joint = joint_of(one, x)
            found.append(weigh(joint, one.infer(joint), samples))
    single, double = found
    size = double["reconstruction"].abs() + double["kl"].abs() + x[0].numel()
    return {k: float(((single[k] - double[k]).abs() / size).max()) / EPS for k in ("log_likelihood", "elbo", "kl")}


@posteriors
@likelihoods
@pytest.mark.parametrize("variance", [0.3, 1e-2, 1e-4])
def test_single_precision_drifts_by_rounding_alone(posterior, likelihood, variance):
    if likelihood == "bernoulli" and variance != 0.3:
        pytest.skip("a Bernoulli has no variance")
    model = make(posterior, likelihood)
    if likelihood == "gaussian":
        with torch.no_grad():
            model.likelihood.log_variance.fill_(math.log(variance))
    x, _ = make_data(model, 6)
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
    assert max(drift(model, x).values()) < 100
    found = estimate(elbo_mc, model.infer, joint_of(model, x), 2)
    found.surrogate.sum().backward()
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
    found = elbo_mc(joint, q, 3)
    assert found.bound.isfinite().all()
    found.surrogate.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# -- estimators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", HEADED)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("log_variance", [-1000.0, -20.0, 20.0, 200.0])
def test_a_posterior_at_the_edge_is_right_or_stops_training(posterior, estimator, log_variance):
    """The bound equals that of double precision, or the step is refused and says that the posterior is why."""
    method, model = ESTIMATORS[estimator], make(posterior)
    if method.closed_kl and not POSTERIORS[posterior].closed_kl:
        pytest.skip("no closed form")
    if posterior == "semi2":
        model.inference.step_size = 1e-6  # else it leaves the edge
    set_log_variance(model, log_variance)
    x, _ = make_data(model, 4)
    bounds = []
    for one in (model, doubled(model)):
        joint, made = joint_of(one, x), method.make()
        bounds.append(estimate(made, one.infer, joint, max(2, method.least)).bound)
    single, double = bounds
    objective = Variational(model, method.make(), max(2, method.least))
    optimiser = make_optimisers(objective.phases, TrainSettings(seed=0, epochs=1, batch_size=4, learning_rate=1e-3))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loss, metrics = objective.loss("model", 0, Batch(x, None, 0, torch.zeros(4), torch.arange(4)))
    how = 1.0, None, FiniteGuard(torch.device("cpu")), 0
    try:
        update(optimiser["model"], loss.mean(), metrics, *how)
    except RunError as stopped:
        assert "the term 'kl' is not finite" in str(stopped) or "the term 'gradient'" in str(stopped)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    else:
        size = double.abs() + 12
        assert ((single - double).abs() / size).max() < 1e-4
        assert all(v.isfinite().all() for v in model.state_dict().values())


def test_weights_that_are_zero_or_equal():
    log_w = torch.tensor([[-math.inf, -3e4, 0.0], [-5.0, -3e4, -math.inf], [-math.inf, -3e4, -1e4]])
    bound = importance_weighted_bound(log_w)
    assert bound.tolist() == pytest.approx([-5 - math.log(3), -3e4, -math.log(3)])
    assert importance_weighted_bound(torch.full((3, 2), -math.inf)).tolist() == [-math.inf] * 2  # not NaN


@pytest.mark.parametrize("alpha", [1 - 1e-12, 1 + 1e-5, 1 - 0.9 * NEAR_ONE])
def test_a_renyi_order_next_to_one_is_refused(alpha):
    model = make("amortised")
    joint = joint_of(model, make_data(model, 4)[0])
    with pytest.raises(InputError, match=r"estimator\.alpha=.*use estimator=elbo_mc"):
        renyi(joint, model.infer(joint), 5, alpha=alpha)


@pytest.mark.parametrize("alpha", [1 - 1.1 * NEAR_ONE, 1 + 1.1 * NEAR_ONE, 100.0, -100.0])
def test_the_orders_that_are_left_keep_their_digits(alpha):
    model = make("amortised")
    x, _ = make_data(model, 4)
    single, double = (
        renyi(joint, one.infer(joint), 50, alpha=alpha).bound
        for one in (model, doubled(model))
        for joint in [joint_of(one, x)]
    )
    assert (single - double).abs().max() < 2e-3


def test_a_gradient_of_zero_is_clipped_to_zero():
    for gradient in (torch.zeros(2, 3), torch.full((2, 3), 1e-30), torch.full((2, 3), 1e15)):
        gradient.requires_grad_()
        clipped = clip_rows(gradient)
        assert clipped.norm(dim=-1).max() <= 5 * (1 + 1e-6)
        if gradient.norm() < 1:
            assert torch.equal(clipped, gradient)
        (slope,) = torch.autograd.grad(clipped.square().sum() + clipped.sum(), gradient)
        assert slope.isfinite().all()  # training differentiates through the refinement


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


def step(model: LatentModel, x: Tensor, estimator=elbo) -> None:
    objective = Variational(model, estimator, 1)
    optimiser = make_optimisers(objective.phases, TrainSettings(seed=0, epochs=1, batch_size=6, learning_rate=1e-3))
    loss, metrics = objective.loss("model", 6, Batch(x, None, 0, torch.zeros(len(x)), torch.arange(len(x))))
    update(optimiser["model"], loss.mean(), metrics, 1.0, None, FiniteGuard(torch.device("cpu")), 6)


def test_where_the_factor_exists_it_is_torchs_own():
    """Nothing is added to the diagonal, however near singular the precision is."""
    for variance in (1.0, 1e-3, 1e-5):
        model, x = steep(variance)
        with torch.no_grad():
            joint = joint_of(model, x)
            precision = joint.linearise(torch.randn(6, 30)).precision
        assert torch.equal(cholesky(precision), torch.linalg.cholesky(precision))


def test_a_precision_without_a_factor_stops_training_by_name():
    model, x = steep(1e-10)
    with torch.no_grad():
        joint = joint_of(model, x)
        assert torch.linalg.cholesky_ex(joint.linearise(torch.randn(6, 30)).precision).info.max() > 0
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for estimator in (elbo, elbo_mc):
        with pytest.raises(RunError, match=r"step 7: the term 'kl' is not finite.* Cholesky factor .*variance"):
            step(model, x, estimator)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    step(*steep(1e-3))


def test_one_image_without_a_factor_is_lost_alone():
    """Its row is NaN in all that is evaluated; the others are what they are without it."""
    model, x = steep(1e-3)
    joint = joint_of(model, x)
    with torch.no_grad():
        q = model.infer(joint)
        broken = q.cholesky.clone()
        broken[2] = cholesky(-torch.eye(30)[None])[0]
        whole, part = weigh(joint, q, 50), weigh(joint, PrecisionNormal(q.mean, broken), 50)
    others = torch.arange(6) != 2
    for name, value in part.items():
        assert value[2].isnan(), name
        torch.testing.assert_close(value[others], whole[name][others])
