"""The score-function estimator: exact on a grid by enumeration, and what its control variates may know."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.models.grid import COUNTS, Grid, gradients, grid_joint, grid_model, log_joint
from support.models.members import image_noise, make_data, make_model
from support.models.quadrature import by_part
from torch import Tensor

from vaerun.errors import InputError
from vaerun.estimators import ScoreFunction, estimate
from vaerun.estimators.score_function import CONTROL_VARIATES, DECAY
from vaerun.models import Joint

WEIGHTS = torch.tensor([1.0, -0.7, 0.4], dtype=torch.float64)  # of the images: each for itself


def exact_elbo(joint: Joint, q: Grid) -> Tensor:
    """[B] nats."""
    log_q = q.log_probabilities
    return (log_q.exp() * (log_joint(joint) - log_q)).sum(1)


def exact_gradients() -> dict[str, Tensor]:
    model, prior, x = grid_model()
    joint = grid_joint(model, prior, x)
    return gradients((exact_elbo(joint, model.infer(joint)) * WEIGHTS).sum(), model, prior)


@pytest.mark.parametrize("control_variate", ["none", "mean"])
def test_all_points_in_proportion_give_the_exact_gradient(control_variate):
    model, prior, x = grid_model()
    estimator = ScoreFunction(control_variate)
    if control_variate == "mean":
        estimator.weighted_sum.fill_(-3.0)
        estimator.weight.fill_(0.2)
    joint = grid_joint(model, prior, x)
    result = estimate(estimator, model.infer, joint, int(COUNTS[0].sum()))
    torch.testing.assert_close(result.bound, exact_elbo(joint, model.infer(joint)))
    torch.testing.assert_close(gradients((result.surrogate * WEIGHTS).sum(), model, prior), exact_gradients())


class Outcomes(torch.nn.Module):
    """q of each image on all M^K outcomes of K samples, one outcome a row."""

    def __init__(self, inference: torch.nn.Module, samples: int) -> None:
        super().__init__()
        m = COUNTS.shape[1]
        self.inner = [inference]  # not a part of this module: the model has it
        self.index = torch.tensor(list(itertools.product(range(m), repeat=samples))).T  # [K, M^K]

    def forward(self, joint: Joint) -> Grid:
        n = self.index.shape[1]
        short = grid_joint_rows(joint, n)
        q = self.inner[0](short)
        return Grid(q.points, q.logits.repeat_interleave(n, 0), self.index.repeat(1, len(COUNTS)))


def grid_joint_rows(joint: Joint, n: int) -> Joint:
    """The joint of every n-th row."""
    return Joint(joint.decoder, joint.likelihood, None, joint.x[::n], latent_dim=2, offset=joint.offset)


@pytest.mark.parametrize(("control_variate", "samples"), [("none", 1), ("none", 2), ("leave_one_out", 2)])
def test_the_mean_over_all_outcomes_is_the_exact_gradient(control_variate, samples):
    model, prior, x = grid_model()
    outcomes = Outcomes(model.inference, samples)
    n = outcomes.index.shape[1]
    joint = grid_joint(model, prior, x.repeat_interleave(n, 0))
    result = estimate(ScoreFunction(control_variate), outcomes, joint, samples)
    q = outcomes(joint)
    probability = q.log_prob(q.points[q.index]).sum(0).exp().detach()
    torch.testing.assert_close(probability.view(3, n).sum(1), torch.ones(3))
    mean = (result.surrogate * probability).view(3, n).sum(1)
    torch.testing.assert_close(gradients((mean * WEIGHTS).sum(), model, prior), exact_gradients())
    bound = (result.bound * probability).view(3, n).sum(1)
    short = grid_joint(model, prior, x)
    torch.testing.assert_close(bound, exact_elbo(short, model.infer(short)))


@pytest.mark.parametrize("posterior", ["full", "laplace2", "iaf2"])
def test_leaving_one_out_lowers_the_variance(posterior):
    model = make_model(posterior)
    x, _ = make_data(model, 3)
    variance = {}
    for name in ("none", "leave_one_out"):
        estimator, result = ScoreFunction(name), []
        for seed in range(60):
            joint = model.joint(x, None, image_noise(model, [0, 1, 2], seed))
            result.append(by_part(model, estimate(estimator, model.infer, joint, 8).surrogate.sum())["q"])
        variance[name] = float(torch.stack(result).var(0).sum())
    assert variance["leave_one_out"] < 0.5 * variance["none"]


# -- the running mean -------------------------------------------------------------------------------------------------


def signals(seeds: range) -> tuple[list[Joint], list[Tensor]]:
    """Joints with noise of their own, and the learning signals [K, B] that they give."""
    model = make_model("amortised")
    x, _ = make_data(model, 3)
    joints = [model.joint(x, None, image_noise(model, [0, 1, 2], seed)) for seed in seeds]
    results = []
    for joint in joints:
        q = model.infer(joint)
        z, log_q = q.transform(joint.noise("posterior", 4))
        results.append((joint.log_prob(z) - log_q).detach())
    return joints, results


def score_weight(estimator: ScoreFunction, joint: Joint, signal: Tensor) -> Tensor:
    """What multiplies grad log q, [K, B]: log w - b, read off the surrogate's derivative in log q."""
    q = make_model("amortised").infer(joint)
    shift = torch.zeros_like(signal).requires_grad_()
    plain = q.log_prob
    q.log_prob = lambda z: plain(z) + shift
    return torch.autograd.grad(estimator(joint, q, len(signal)).surrogate.sum(), shift)[0] * len(signal)


def test_the_running_mean_knows_earlier_steps_only():
    joints, learning_signals = signals(range(4))
    estimator = ScoreFunction("mean")
    for step, (joint, signal) in enumerate(zip(joints, learning_signals, strict=True)):
        # Weights DECAY^age, divided by their sum: no pull towards the zero that it starts from.
        ages = torch.arange(step - 1, -1, -1)
        earlier = torch.tensor([float(s.mean()) for s in learning_signals[:step]])
        expected = (DECAY**ages * earlier).sum() / (DECAY**ages).sum() if step else torch.tensor(0.0)
        torch.testing.assert_close(score_weight(estimator, joint, signal), signal - expected, rtol=1e-5, atol=1e-4)
        assert step == 0 or expected < -1


def test_the_running_mean_moves_in_training_alone():
    joints, learning_signals = signals(range(3))
    estimator = ScoreFunction("mean")
    score_weight(estimator, joints[0], learning_signals[0])
    before = {k: v.clone() for k, v in estimator.state_dict().items()}
    assert set(before) == {"weighted_sum", "weight"}
    assert before["weighted_sum"] != 0
    estimator.eval()
    for joint, signal in zip(joints, learning_signals, strict=True):
        score_weight(estimator, joint, signal)
    torch.testing.assert_close(estimator.state_dict(), before, rtol=0, atol=0)
    restored = ScoreFunction("mean")
    restored.load_state_dict(before)
    weights = [score_weight(e, joints[1], learning_signals[1]) for e in (estimator, restored)]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    estimator.train()
    score_weight(estimator, joints[1], learning_signals[1])
    assert estimator.state_dict()["weight"] != before["weight"]


@pytest.mark.parametrize("control_variate", ["none", "leave_one_out"])
def test_the_others_have_no_state_and_know_their_image_alone(control_variate):
    joints, learning_signals = signals(range(1))
    estimator, signal = ScoreFunction(control_variate), learning_signals[0]
    assert estimator.state_dict() == {}
    baseline = torch.zeros_like(signal)
    if control_variate == "leave_one_out":
        baseline = torch.stack([torch.cat([signal[:k], signal[k + 1 :]]).mean(0) for k in range(4)])
    torch.testing.assert_close(score_weight(estimator, joints[0], signal), signal - baseline)


def test_refused():
    joints, _ = signals(range(1))
    q = make_model("amortised").infer(joints[0])
    with pytest.raises(InputError, match=r"estimator.samples .*2"):
        ScoreFunction("leave_one_out")(joints[0], q, 1)
    for name in ("none", "mean"):
        assert ScoreFunction(name)(joints[0], q, 1).bound.isfinite().all()
    with pytest.raises(InputError, match=f"'median'.*{CONTROL_VARIATES[0]}, {CONTROL_VARIATES[1]}"):
        ScoreFunction("median")
