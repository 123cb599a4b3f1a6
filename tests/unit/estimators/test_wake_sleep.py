"""Reweighted wake-sleep: each side's own objective, exactly where z is on a grid, and neither reaches the other."""

from __future__ import annotations

import pytest
import torch
from support.models.grid import COUNTS, gradients, grid_joint, grid_model, log_joint
from support.models.members import CONTEXTS, POSTERIORS, image_noise, make_data, make_model
from support.models.quadrature import by_part

from vaerun.config.plugins import bind
from vaerun.distributions import LatentDistribution
from vaerun.estimators import estimate, iwae, wake_sleep
from vaerun.models import Joint

posteriors = pytest.mark.parametrize("posterior", POSTERIORS)
contexts = pytest.mark.parametrize("context", CONTEXTS)
DEPENDENT = [name for name in POSTERIORS if name.startswith("laplace") or name == "semi2"]


def test_both_updates_are_exact_on_a_grid():
    # 20 samples in q's own proportions: the self-normalised weights are p(z | x) without error.
    model, prior, x = grid_model()
    joint = grid_joint(model, prior, x)
    result = estimate(wake_sleep, model.infer, joint, int(COUNTS[0].sum()))
    log_p = log_joint(joint)
    log_evidence = log_p.logsumexp(1)
    torch.testing.assert_close(result.bound, log_evidence)

    log_q = model.infer(joint.detach()).log_probabilities
    log_posterior = (log_p - log_evidence.unsqueeze(1)).detach()
    inclusive = (log_posterior.exp() * (log_posterior - log_q)).sum(1)  # KL(p(z | x) || q) [B]
    weights = torch.tensor([1.0, -0.7, 0.4])  # each image for itself
    update = gradients((result.surrogate * weights).sum(), model, prior)
    log_p = log_joint(grid_joint(model, prior, x))
    model_part = gradients((log_p.logsumexp(1) * weights).sum(), model, prior)["p"]
    torch.testing.assert_close(update["p"], model_part)
    torch.testing.assert_close(update["q"], gradients((-inclusive * weights).sum(), model, prior)["q"])
    assert min(update["p"].norm(), update["q"].norm()) > 0.1


@posteriors
@contexts
def test_each_side_ascends_its_own_weighted_density(posterior, context):
    model = make_model(posterior, context=context)
    x, c = make_data(model, 3)

    def joint() -> Joint:
        return model.joint(x, c, image_noise(model, [0, 1, 2]))

    full_joint = joint()
    q: LatentDistribution = model.infer(full_joint.detach())
    z = q.transform(full_joint.noise("posterior", 4))[0].detach()
    log_w = full_joint.log_prob(z) - q.log_prob(z)
    v = (log_w - log_w.logsumexp(0)).exp().detach()
    update = by_part(model, estimate(wake_sleep, model.infer, joint(), 4).surrogate.sum())
    torch.testing.assert_close(update["p"], by_part(model, (v * joint().log_prob(z)).sum())["p"])
    # The model's is also the gradient of the importance-weighted bound, q left as it is.
    bound = estimate(iwae, lambda bound_joint: model.infer(bound_joint).detach(), joint(), 4).bound
    torch.testing.assert_close(update["p"], by_part(model, bound.sum())["p"])
    assert ("q" in update) == POSTERIORS[posterior].encoder
    if "q" in update:
        torch.testing.assert_close(update["q"], by_part(model, (v * q.log_prob(z)).sum())["q"])
        assert update["q"].norm() > 1e-2


@pytest.mark.parametrize("posterior", DEPENDENT)
@contexts
def test_holding_the_joint_matters(posterior, context):
    # The guard of the tests above: inferred from the joint itself, these posteriors do reach the decoder.
    model = make_model(posterior, context=context)
    x, c = make_data(model, 3)
    joints = [model.joint(x, c, image_noise(model, [0, 1, 2])) for _ in range(2)]
    detached = by_part(model, estimate(wake_sleep, model.infer, joints[0], 4).surrogate.sum())
    attached = by_part(model, wake_sleep(joints[1], model.infer(joints[1]), 4).surrogate.sum())
    assert (detached["p"] - attached["p"]).norm() > 1e-3 * detached["p"].norm()
    if "q" in detached:
        torch.testing.assert_close(detached["q"], attached["q"])


def test_an_estimator_with_options_bound_says_what_it_needs():
    bound = bind({"_target_": "vaerun.estimators.wake_sleep"}, "vaerun.estimators", "estimator")
    assert bound is not wake_sleep
    model = make_model("laplace2")
    x, _ = make_data(model, 3)
    results = []
    for estimator in (wake_sleep, bound):
        joint = model.joint(x, None, image_noise(model, [0, 1, 2]))
        results.append(by_part(model, estimate(estimator, model.infer, joint, 4).surrogate.sum()))
    torch.testing.assert_close(results[0], results[1])
