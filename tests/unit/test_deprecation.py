"""Names of version 0.1 that a plug-in may use or define: they work, and warn."""

from __future__ import annotations

import sys

import pytest
import torch
from support.models import members

import vaerun.distributions
import vaerun.estimators
import vaerun.estimators.base
import vaerun.objectives
import vaerun.randomness
from vaerun.distributions import DiagonalNormal
from vaerun.estimators.base import Estimate, batch_coupling, estimate, reparameterised_terms
from vaerun.evaluation.likelihood import pareto
from vaerun.models import Joint

D = 3


def make_joint() -> Joint:
    model = members.make_model("amortised")
    return model.joint(members.make_data(model, 2)[0])


def normal(kind: type[DiagonalNormal] = DiagonalNormal) -> DiagonalNormal:
    return kind(torch.randn(2, D, requires_grad=True), torch.randn(2, D, requires_grad=True))


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        (vaerun.randomness, "mix", "derive_seed"),
        (vaerun.distributions, "Point", "Delta"),
        (vaerun.distributions, "held_module", "detached_module"),
        (vaerun.objectives, "WarmUp", "KLWarmup"),
        (vaerun.objectives, "Look", "Diagnostics"),
        (vaerun.objectives, "Information", "InformationWeights"),
        (vaerun.estimators, "whole_batch", "batch_coupling"),
        (vaerun.estimators.base, "Draw", "SampleTerms"),
        (vaerun.estimators.base, "at_held_samples", "detached_samples"),
        (vaerun.estimators.base, "reparameterised", "reparameterised_samples"),
    ],
)
def test_old_names_of_a_module(module, old, new):
    with pytest.warns(DeprecationWarning, match=f"{old} is deprecated: use .*{new}"):
        assert getattr(module, old) is getattr(module, new)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


def test_a_distribution_called_by_its_old_names():
    q = normal()
    with pytest.warns(DeprecationWarning, match=r"DiagonalNormal.held is deprecated: use DiagonalNormal.detach"):
        assert not q.held().mean.requires_grad  # type: ignore[attr-defined]
    with pytest.warns(DeprecationWarning, match=r"DiagonalNormal.free is deprecated"):
        parameters, build = q.free()  # type: ignore[attr-defined]
    assert all(p.is_leaf for p in parameters)
    assert torch.equal(build().mean, q.mean)


def test_a_distribution_that_overrides_the_old_names():
    with pytest.warns(DeprecationWarning, match=r"Shifted.held is deprecated: use Shifted.detach"):

        class Shifted(DiagonalNormal):
            calls = 0

            def held(self) -> DiagonalNormal:
                Shifted.calls += 1
                return super().held()  # type: ignore[misc]

    with pytest.warns(DeprecationWarning, match="DiagonalNormal.held is deprecated"):
        assert not normal(Shifted).detach().mean.requires_grad
    assert Shifted.calls == 1


def test_a_joint_called_by_its_old_name():
    joint = make_joint()
    with pytest.warns(DeprecationWarning, match=r"Joint.held is deprecated"):
        assert not next(joint.held().decoder.parameters()).requires_grad  # type: ignore[attr-defined]


def test_an_estimator_with_the_old_attributes():
    joint = make_joint()
    seen = []

    def doubled(joint, q, samples):
        return Estimate(2 * joint.log_likelihood(q.mean.unsqueeze(0))[0], torch.zeros(()), {})

    doubled.holds_joint, doubled.whole_batch = True, "estimator.x=1"

    def infer(joint):
        seen.append(joint)
        return normal()

    with pytest.warns(DeprecationWarning, match=r"function.holds_joint is deprecated: use detach_joint"):
        estimate(doubled, infer, joint, 1)
    assert seen != [joint]
    with pytest.warns(DeprecationWarning, match=r"function.whole_batch is deprecated: use batch_coupling"):
        assert batch_coupling(doubled) == "estimator.x=1"


def test_samples_by_their_old_name():
    joint = make_joint()
    torch.manual_seed(0)
    with pytest.warns(DeprecationWarning, match="pathwise is deprecated: use reparameterised_terms"):
        old = vaerun.estimators.base.pathwise(joint, normal(), 2, held=True)
    torch.manual_seed(0)
    assert old.z.shape == reparameterised_terms(joint, normal(), 2, True).z.shape


def test_a_module_that_has_moved():
    sys.modules.pop("vaerun.evaluation.pareto", None)
    with pytest.warns(DeprecationWarning, match=r"has moved: import vaerun\.evaluation\.likelihood\.pareto"):
        from vaerun.evaluation.pareto import pareto_k  # type: ignore[import-not-found]
    assert pareto_k is pareto.pareto_k
    with pytest.raises(ModuleNotFoundError):
        import vaerun.evaluation.nothing  # type: ignore[import-not-found]  # noqa: F401
