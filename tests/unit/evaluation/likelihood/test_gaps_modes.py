"""Inference gaps where q sits on the wrong mode, against quadrature; members of a family at a mode."""

from __future__ import annotations

import math

import pytest
import torch
from support.models.draw import draw
from support.models.folded import folded, images_at, quadrature
from support.models.members import FAMILIES, POSTERIORS, make_data, make_model
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from vaerun.evaluation.adaptive.adaptation import Amis
from vaerun.evaluation.adaptive.amis import adaptive_importance_sampling
from vaerun.evaluation.likelihood.gaps import inference_gaps
from vaerun.evaluation.likelihood.optimal_posterior import Refinement
from vaerun.models import LatentModel

SEARCH = Refinement(samples=16, learning_rate=0.05)
MODES = Amis(starts=4, max_starts=8)


def best_elbo(model: LatentModel, x: Tensor, mean: float) -> Tensor:
    """The largest ELBO [B] of a normal near `mean`, by quadrature over z (d = 1) and gradient ascent."""
    axis = torch.linspace(-9, 9, 6001)
    with torch.no_grad():
        log_f = model.joint(x).log_prob(axis.view(-1, 1, 1).expand(-1, len(x), 1))  # [n, B]
    m, s = torch.full((len(x),), mean, requires_grad=True), torch.full((len(x),), math.log(0.1), requires_grad=True)
    optimiser = torch.optim.LBFGS([m, s], max_iter=300, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def elbo() -> Tensor:
        log_q = torch.distributions.Normal(m, s.exp()).log_prob(axis.unsqueeze(1))
        return (log_q.exp() * (log_f - log_q)).sum(0) * (axis[1] - axis[0])

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = -elbo().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return elbo().detach()


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_from_the_mode_the_gap_is_right_where_q_is_on_the_wrong_one(side: float) -> None:
    model = folded(1, q_mean=-side)  # the images are made on the other side
    split = images_at(model, torch.full((4, 1), side))
    x = split.batch(0, 4).x
    exact, masses = quadrature(model, x)
    right, wrong = best_elbo(model, x, side), best_elbo(model, x, -side)
    assert (right > wrong + 0.5).all()
    assert ((exact - right) > -1e-6).all()
    assert (masses.amin(1) > exact - 20).all()  # both modes count

    def run(**options):
        return inference_gaps(model, split, SEARCH, importance_samples=2000, elbo_samples=2000, seed=0, **options)

    old, new = run(), run(amis=MODES, log_likelihood=exact)
    torch.testing.assert_close(old["elbo_optimal"], wrong, atol=0.05, rtol=0)
    assert (old["log_likelihood"] < exact - 0.3).all()  # which also misses the mode, and knows nothing of it
    torch.testing.assert_close(new["elbo_optimal"], right, atol=0.05, rtol=0)
    torch.testing.assert_close(new["elbo_optimal_from_q"], old["elbo_optimal"])
    torch.testing.assert_close(new["elbo_optimal_from_mode"], new["elbo_optimal"])
    torch.testing.assert_close(new["log_likelihood"], exact)
    torch.testing.assert_close(new["gap_approximation"], exact - right, atol=0.05, rtol=0)
    torch.testing.assert_close(new["gap_inference"], exact - new["elbo"])
    assert (new["gap_amortisation"] > old["gap_amortisation"] + 0.4).all()
    assert (new["gap_from_mode"] == 1).all()


def test_a_q_on_the_right_mode_is_left_to_its_own_search() -> None:
    model = folded(1, q_mean=1.0)
    split = images_at(model, torch.full((3, 1), 1.0))
    new = inference_gaps(model, split, SEARCH, importance_samples=500, elbo_samples=500, seed=0, amis=MODES)
    assert (new["gap_from_mode"] == 0).all()
    assert (new["elbo_optimal"] == new["elbo_optimal_from_q"]).all()
    torch.testing.assert_close(new["elbo_optimal"], new["elbo_optimal_from_mode"], atol=0.05, rtol=0)


def test_with_adaptive_importance_sampling_of_the_same_images() -> None:
    model = folded(1, q_mean=-1.0)
    split = images_at(model, torch.full((3, 1), 1.0))
    amis = adaptive_importance_sampling(model, split, MODES, seed=0)["amis"]
    options = {"importance_samples": 50, "elbo_samples": 50, "seed": 0, "amis": MODES, "log_likelihood": amis}
    whole = inference_gaps(model, split, SEARCH, **options)
    torch.testing.assert_close(whole["log_likelihood"], amis)
    parts = inference_gaps(model, split, SEARCH, batch=2, **options)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_every_posterior_can_start_from_the_mode(posterior: str) -> None:
    model = make_model(posterior).requires_grad_(False).eval()
    split = images_at(model, torch.zeros(2, 3))
    quick = Refinement(samples=4, learning_rate=0.05, window=10, max_steps=40)
    result = inference_gaps(model, split, quick, importance_samples=300, elbo_samples=300, seed=0, amis=MODES)
    assert {"elbo_optimal_from_q", "elbo_optimal_from_mode", "gap_from_mode"} < result.keys()
    assert all(value.isfinite().all() for value in result.values())
    chosen = torch.where(result["gap_from_mode"] == 1, result["elbo_optimal_from_mode"], result["elbo_optimal_from_q"])
    assert torch.equal(result["elbo_optimal"], chosen)


# -- members of a family at a mode ------------------------------------------------------------------------------------


def mode_of(b: int, d: int) -> tuple[Tensor, Tensor, MultivariateNormal]:
    source = torch.Generator().manual_seed(2)
    root = torch.randn(b, d, d, generator=source)
    mode, cholesky = torch.randn(b, d, generator=source), torch.linalg.cholesky(root @ root.mT + 0.3 * torch.eye(d))
    return mode, cholesky, MultivariateNormal(mode, precision_matrix=cholesky @ cholesky.mT)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "standard"])
def test_a_normal_at_a_mode_is_the_closest_of_its_scales(family: str) -> None:
    torch.manual_seed(0)
    mode, cholesky, laplace = mode_of(4, 3)
    q = FAMILIES[family](4, 3)[0].at_mode(mode, cholesky)
    torch.testing.assert_close(q.centre, mode)

    def kl(member) -> Tensor:
        covariance = member.covariance_matrix
        return kl_divergence(MultivariateNormal(member.mean, (covariance + covariance.mT) / 2), laplace).sum()

    if family == "precision":
        assert kl(q).abs() < 1e-9
        return
    leaves, build = q.local_parameters()
    gradients = torch.autograd.grad(kl(build()), leaves[:2])  # of the mean and the log-variance
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)
    assert kl(q) > 0.01


def test_a_flow_at_a_mode_keeps_its_scales() -> None:
    mode, cholesky, _ = mode_of(4, 3)
    model = make_model("iaf2")
    x, c = make_data(model, 4)
    with torch.no_grad():
        q = model.infer(model.joint(x, c))
        moved = q.at_mode(mode, cholesky)
    torch.testing.assert_close(moved.centre, mode, atol=1e-8, rtol=0)
    assert torch.equal(moved.base.log_variance, q.base.log_variance)


def test_a_recurrence_at_a_mode_keeps_its_scales() -> None:
    model = draw().requires_grad_(False).eval()
    x, c = make_data(model, 4)
    mode, cholesky, _ = mode_of(4, model.latent_dim)
    q = model.infer(model.joint(x, c))
    moved = q.at_mode(mode, cholesky)
    torch.testing.assert_close(moved.centre, mode, atol=1e-9, rtol=0)
    assert (q.centre - mode).abs().max() > 0.1
    assert torch.equal(moved.log_variance_shift, q.log_variance_shift)
