"""Rows of a joint, and differences of its log-density, against the whole batch and log_prob, on every path."""

from __future__ import annotations

import pytest
import torch
from support.models.members import CONTEXTS, LIKELIHOODS, NETWORKS, make_data, make_model

paths = [
    pytest.mark.parametrize("context", CONTEXTS),
    pytest.mark.parametrize("likelihood", LIKELIHOODS),
    pytest.mark.parametrize("network", NETWORKS),
]


def over_all_paths(test):
    for mark in paths:
        test = mark(test)
    return test


@over_all_paths
def test_log_ratio_is_the_difference_of_log_prob(context, likelihood, network):
    model = make_model("amortised", likelihood, network, context)
    joint = model.joint(*make_data(model, 5))
    z, mu = torch.randn(2, 5, 3)
    with torch.no_grad():
        log_f = joint.prior.log_prob(torch.stack([z, mu])) + joint.likelihood.log_prob(
            joint.x, joint.decode(torch.stack([z, mu]))
        )
        torch.testing.assert_close(joint.log_ratio(z, mu), log_f[0] - log_f[1], atol=1e-9, rtol=1e-9)
        assert (joint.log_ratio(mu, mu) == 0).all()


def test_log_ratio_keeps_its_digits_in_float32(single_precision):
    # log p(x | z) of many pixels is large, and a small step changes its last digits only.
    model = make_model("amortised", network="mlp")
    with torch.no_grad():
        model.likelihood.log_variance.fill_(-9.0)
    x, _ = make_data(model, 4)
    mu = torch.randn(4, 3)
    z = mu + 1e-3 * torch.randn(4, 3)
    with torch.no_grad():
        result = model.joint(x).log_ratio(z, mu)
        joint = model.double().joint(x.double())
        log_f = joint.prior.log_prob(torch.stack([z, mu]).double()) + joint.likelihood.log_prob(
            joint.x, joint.decode(torch.stack([z, mu]).double())
        )
    truth = log_f[0] - log_f[1]
    assert truth.abs().max() > 1
    assert log_f.abs().min() > 1e4
    torch.testing.assert_close(result.double(), truth, atol=1e-3, rtol=1e-3)


@over_all_paths
def test_rows_of_a_joint_are_those_of_the_batch(context, likelihood, network):
    model = make_model("amortised", likelihood, network, context)
    joint = model.joint(*make_data(model, 5))
    rows = torch.tensor([4, 0, 0, 3, 1, 4])
    nested = torch.tensor([5, 2, 2])
    z, mu = torch.randn(40, 5, 3), torch.randn(5, 3)
    with torch.no_grad():
        for few, index in ((joint.select(rows), rows), (joint.select(rows).select(nested), rows[nested])):
            for samples in (1, 40):  # the second by the Gram matrix, where there is one
                part = z[:samples, index]
                torch.testing.assert_close(few.log_prob(part), joint.log_prob(z[:samples])[:, index])
            torch.testing.assert_close(
                few.log_ratio(z[0, index], mu[index]), joint.log_ratio(z[0], mu)[index], atol=1e-9, rtol=1e-9
            )
            local, whole = few.linearise(mu[index]), joint.linearise(mu)
            torch.testing.assert_close(local.gradient, whole.gradient[index])
            torch.testing.assert_close(local.precision, whole.precision[index])
        with pytest.raises(RuntimeError, match="before selecting"):
            joint.select(rows).noise("posterior", 1)
