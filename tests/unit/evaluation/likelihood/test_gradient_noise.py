"""Gradient noise against gradients whose distribution is known."""

from __future__ import annotations

import math
import signal
from functools import partial
from typing import Any

import pytest
import torch
from support.models.members import POSTERIORS, Posterior, make_data, make_estimator, make_model
from support.models.monitoring import RecordingMonitor
from torch import Tensor, nn

from vaerun.distributions import LatentDistribution
from vaerun.errors import InputError, Interrupted
from vaerun.estimators import Estimate, ScoreFunction, dreg, elbo, elbo_mc, iwae, stl, wake_sleep
from vaerun.evaluation.likelihood.gradient_noise import GradientNoise, RunningMoments, format_table, gradient_noise
from vaerun.inference import Laplace
from vaerun.models import Joint, LatentModel
from vaerun.signals import ShutdownSignal
from vaerun.tracking.monitor import Monitor

EXACT = Posterior(partial(Laplace, steps=1, damping="none"))


class Series(nn.Module):
    """An estimator whose n-th gradient with respect to the decoder's bias is a_n (1, 2, 3, ...)."""

    def __init__(self, series: Tensor) -> None:
        super().__init__()
        self.series, self.calls = series, 0
        self.eval()

    def forward(self, joint: Joint, q: LatentDistribution, samples: int) -> Estimate:
        assert self.training
        assert torch.is_grad_enabled()
        bias: Tensor = joint.decoder.affine.bias
        surrogate = (self.series[self.calls] * torch.arange(1.0, len(bias) + 1) * bias).sum().expand(len(joint.x))
        self.calls += 1
        return Estimate(surrogate, surrogate, {})


def measure(
    model: LatentModel, estimators: dict[str, Any], *, n: int = 4, samples: int = 2, draws: int = 200, **options: Any
) -> dict[str, Any]:
    return gradient_noise(model, *make_data(model, n), estimators, samples=samples, draws=draws, seed=5, **options)


# -- exact values -----------------------------------------------------------------------------------------------------


def test_a_known_series_of_gradients_is_summed_up_exactly():
    model, warm_up, draws = make_model("amortised"), 3, 7
    series = torch.randn(warm_up + draws) + 2
    counted, size = series[warm_up:], torch.arange(1.0, 13)
    estimator = Series(series)
    result = measure(model, {"series": estimator}, draws=draws, warm_up=warm_up)["series"]
    assert set(result) == {"decoder", "encoder"}
    noise, p = result["decoder"], sum(x.numel() for x in model.decoder.parameters()) + 1  # and log s2
    assert (noise.parameters, noise.draws) == (p, draws)
    assert noise.variance == pytest.approx(float(counted.var() * size.square().sum() / p), rel=1e-12)
    assert noise.norm == pytest.approx(float(counted.mean() * size.norm()), rel=1e-12)
    assert noise.snr == pytest.approx(float(counted.mean() / counted.std()), rel=1e-12)  # of those that move at all
    silent = result["encoder"]
    assert (silent.variance, silent.norm) == (0, 0)
    assert math.isnan(silent.snr)
    assert estimator.calls == 0  # a copy of it was used


def test_a_gradient_without_noise_has_an_infinite_ratio():
    result = measure(make_model("amortised"), {"constant": Series(torch.ones(9))}, draws=5, warm_up=4)["constant"]
    assert result["decoder"].variance == 0
    assert result["decoder"].snr == math.inf
    assert "signal-to-noise inf" in format_table({"constant": result})


def test_the_variance_and_its_error_are_right_in_the_mean():
    # Of 400 repetitions with coordinates that are correlated; the error is the spread over repetitions.
    scale, draws = torch.tensor([[2.0, 0.0], [1.5, 0.5]]), 12
    truth = float(scale.square().sum()) / 2
    result = []
    for _ in range(400):
        moments = RunningMoments(torch.zeros(2))
        for value in 3 + torch.randn(draws, 2) @ scale.mT:
            moments.add(value)
        result.append(moments.noise())
    variances = torch.tensor([noise.variance for noise in result])
    assert abs(float(variances.mean()) - truth) < 5 * float(variances.std()) / 20
    squared = torch.tensor([noise.variance_error for noise in result]).square()
    assert float(squared.mean().sqrt()) == pytest.approx(float(variances.std()), rel=0.2)


def bias_alone() -> LatentModel:
    """A linear-Gaussian model of which the decoder's bias is the only parameter outside the inference."""
    model = make_model("amortised", network="linear")
    for module, name in ((model.decoder.affine, "weight"), (model.likelihood, "log_variance")):
        value = getattr(module, name).detach()
        delattr(module, name)
        module.register_buffer(name, value)
    return model


def test_the_pathwise_variance_of_a_linear_model_is_the_exact_one():
    # d/db of the batch mean is mean_b (x - W z_b - b) / s2, so its variance is W (sum_b S_b) W' / (B^2 K s2^2).
    model, b, k = bias_alone(), 4, 3
    x, _ = make_data(model, b)
    w, s2 = model.decoder.affine.weight, model.likelihood.log_variance.exp()
    with torch.no_grad():
        q = model.infer(model.joint(x))
        covariance = w @ torch.diag(q.variance.sum(0)) @ w.mT / (b**2 * k * s2**2)
        gradient = ((x - model.joint(x).decode(q.mean)).flatten(1) / s2).mean(0)
    exact = float(covariance.diagonal().mean())
    values = measure(model, {"elbo": elbo, "elbo_mc": elbo_mc, "stl": stl}, samples=k, draws=600, warm_up=0)
    for result in values.values():
        noise = result["decoder"]
        assert noise.parameters == 12
        assert abs(noise.variance - exact) < 5 * noise.variance_error < 0.4 * exact
        # |mean|^2 holds the variance of a mean besides.
        assert noise.norm**2 == pytest.approx(float(gradient.square().sum()) + 12 * exact / 600, rel=0.05)
        ratio = float((gradient.abs() / covariance.diagonal().sqrt()).mean())
        assert noise.snr == pytest.approx(ratio, rel=0.1)


# -- orders among estimators ------------------------------------------------------------------------------------------


def test_variance_falls_with_samples():
    model = make_model("amortised")
    one, eight = (measure(model, {"elbo_mc": elbo_mc}, samples=k, draws=300)["elbo_mc"] for k in (1, 8))
    for group in ("decoder", "encoder"):
        ratio = one[group].variance / eight[group].variance
        error = ratio * sum((n[group].variance_error / n[group].variance) ** 2 for n in (one, eight)) ** 0.5
        assert abs(ratio - 8) < 5 * error < 8


def test_control_variates_help_and_the_path_helps_more():
    names = ("score_none", "score_mean", "score_leave_one_out", "elbo_mc")
    estimators = {name: make_estimator(name) for name in names} | {"score_mean": ScoreFunction("mean")}
    result = measure(make_model("amortised"), estimators, samples=4, warm_up=30)
    none, mean, leave_one_out, path = (result[name]["encoder"] for name in names)
    for noisy, quiet in ((none, mean), (none, leave_one_out), (mean, path), (leave_one_out, path)):
        assert noisy.variance - quiet.variance > 5 * (noisy.variance_error + quiet.variance_error)
    assert path.snr > 2 * none.snr
    # The decoder's gradient is the same: its control variate does not reach it.
    assert result["score_none"]["decoder"].variance == pytest.approx(result["elbo_mc"]["decoder"].variance, rel=1e-9)


def test_a_running_mean_warms_up():
    cold, warm = (
        measure(make_model("amortised"), {"mean": ScoreFunction("mean")}, draws=5, warm_up=w)["mean"]["encoder"]
        for w in (0, 20)
    )
    assert cold.variance > 1.5 * warm.variance  # which does not begin with a baseline of zero


def test_an_exact_posterior_has_gradients_without_noise():
    # log w is log p(x) whatever z is, as a function of the parameters too.
    result = measure(make_model(EXACT, network="linear"), {"elbo_mc": elbo_mc, "elbo": elbo}, draws=30)
    assert result["elbo_mc"]["decoder"].variance < 1e-20
    assert result["elbo_mc"]["decoder"].snr > 1e8
    assert result["elbo_mc"]["decoder"].norm == pytest.approx(result["elbo"]["decoder"].norm, rel=0.1)
    assert result["elbo"]["decoder"].variance > 1e-4


def test_draws_are_the_same_for_all():
    result = measure(make_model("semi2"), {"a": elbo_mc, "b": elbo_mc, "c": elbo}, draws=10)
    assert result["a"] == result["b"] != result["c"]
    assert measure(make_model("semi2"), {"b": elbo_mc}, draws=10)["b"] == result["b"]


# -- what it takes and leaves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["plain", "label_prior"])
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_every_posterior_is_measured_and_its_model_left_as_it_was(posterior, context):
    model = make_model(posterior, context=context).eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    model.decoder.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    mean = ScoreFunction("mean")
    estimators = {"mc": elbo_mc, "stl": stl, "iwae": iwae, "dreg": dreg, "mean": mean, "wake_sleep": wake_sleep}
    generator = torch.get_rng_state()
    with torch.no_grad():
        values = measure(model, estimators, draws=3, warm_up=1)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), generator)
    assert [p.requires_grad for p in model.parameters()] == [i % 2 == 0 for i in range(len(list(model.parameters())))]
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert mean.weight == 0
    assert mean.training
    sizes = {"encoder": sum(p.numel() for p in model.inference.parameters())}
    sizes["decoder"] = sum(p.numel() for p in model.parameters()) - sizes["encoder"]
    for result in values.values():
        assert set(result) == ({"decoder", "encoder"} if POSTERIORS[posterior].encoder else {"decoder"})
        for group, noise in result.items():
            assert noise.parameters == sizes[group]
            assert noise.variance > 0
            assert noise.snr > 0


def test_what_is_changed_is_put_back_after_an_error_too():
    def careless(joint: Joint, q: LatentDistribution, samples: int) -> Estimate:
        joint.offset.add_(1)
        raise ZeroDivisionError

    model = make_model("amortised").requires_grad_(False)
    offset, generator = model.offset.clone(), torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        measure(model, {"careless": careless})
    assert torch.equal(model.offset, offset)
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(p.requires_grad for p in model.parameters())


def test_an_estimator_that_holds_the_joint_gets_such_a_posterior():
    class Holding:
        def __init__(self, detach_joint: bool) -> None:
            self.detach_joint = detach_joint

        def __call__(self, joint: Joint, q: LatentDistribution, samples: int) -> Estimate:
            assert q.mean.requires_grad != self.detach_joint  # Laplace's mode search runs through the decoder
            return elbo_mc(joint, q, samples)

    result = measure(make_model("laplace2_alone"), {"yes": Holding(True), "no": Holding(False)}, draws=3)
    assert result["yes"]["decoder"].norm != result["no"]["decoder"].norm


def test_a_refusal_is_told_with_its_reason():
    model = make_model("householder1", context="label_prior")
    estimators = {"elbo": elbo, "mc": elbo_mc, "leave_one_out": ScoreFunction("leave_one_out")}
    result = measure(model, estimators, samples=1, draws=5)
    assert "closed form" in result["elbo"]
    assert "leave_one_out" in result["leave_one_out"]
    assert isinstance(result["mc"]["encoder"], GradientNoise)
    lines = format_table(result).splitlines()
    assert len(lines) == 4
    assert lines[0] == f"elbo           not applicable: {result['elbo']}"
    noise = result["mc"]["decoder"]
    assert lines[1].startswith(f"mc             decoder  variance {noise.variance:.3e} ± ")
    for part in (
        f"norm of mean {noise.norm:.3e}",
        f"signal-to-noise {noise.snr:.3g}",
        f"{noise.parameters} parameters",
    ):
        assert part in lines[1]
    assert format_table({}) == ""


def test_input_is_checked_and_stopping_works():
    model = make_model("amortised")
    for options in ({"samples": 0}, {"draws": 2}, {"warm_up": -1}):
        with pytest.raises(InputError, match=next(iter(options))):
            measure(model, {"mc": elbo_mc}, **options)
    monitor = RecordingMonitor()
    measure(model, {"a": elbo_mc, "b": elbo_mc}, draws=3, monitor=monitor)
    assert monitor.advanced == [1, 1]
    stop = ShutdownSignal()
    stop.signum = signal.SIGTERM
    with pytest.raises(Interrupted):
        measure(model, {"mc": elbo_mc}, monitor=Monitor(stop))
