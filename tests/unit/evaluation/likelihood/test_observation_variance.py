"""The choice of an observation variance, and annealing through a decoder with a categorical code."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from support.models.annealing import standard_error
from support.models.monitoring import RecordingMonitor
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.nn import functional as F

from vaerun.data.dataset import Split
from vaerun.data.transforms import Transform
from vaerun.errors import InputError, Interrupted, RunError
from vaerun.evaluation.likelihood import observation_variance as observation
from vaerun.evaluation.likelihood.annealed import Annealing, annealed_importance_sampling, bidirectional, simulate
from vaerun.evaluation.likelihood.observation_variance import VARIANCES, VarianceChoice, choose_variance, max_runs
from vaerun.inference import Amortised
from vaerun.models import Gaussian, LatentModel
from vaerun.models.ppca import exact_log_likelihood
from vaerun.nets import MLPDecoder, MLPEncoder
from vaerun.signals import ShutdownSignal
from vaerun.tracking.monitor import Monitor

SHAPE = (1, 3, 3)
TRUTH = 0.01
GRID = (0.09, 0.03, 0.01, 0.003, 0.001)
IMAGES = 12
ANNEALING = Annealing(temperatures=60, chains=96, leapfrog_steps=3)


def observe(decoder: nn.Module, d: int, variance: float, shape: tuple[int, ...] = SHAPE) -> LatentModel:
    """A generator with a Gaussian around it; its inference network is not looked at."""
    encoder = MLPEncoder(shape, hidden=[])
    model = LatentModel(
        decoder, Gaussian(variance, learned=False), Amortised(encoder, d), latent_dim=d, mean=torch.zeros(shape)
    )
    return model.eval()


def linear_generator() -> MLPDecoder:
    generator = MLPDecoder(2, SHAPE, hidden=[])
    source = torch.Generator().manual_seed(1)
    assert generator.affine is not None
    with torch.no_grad():
        generator.affine.weight.normal_(0, 0.12, generator=source)
        generator.affine.bias.fill_(0.5)
    return generator


def split_of(x: Tensor) -> Split:
    return Split("validation", (x * 255).round().clamp(0, 255).to(torch.uint8), None, 0, Transform(), False)


@pytest.fixture
def validation() -> Split:
    """Images that the linear generator made, with noise of the true variance."""
    source = torch.Generator().manual_seed(2)
    z, noise = torch.randn(IMAGES, 2, generator=source), torch.randn(IMAGES, *SHAPE, generator=source)
    with torch.no_grad():
        return split_of(linear_generator()(z, None) + TRUTH**0.5 * noise)


def exact_mean(split: Split, variance: float) -> float:
    model = observe(linear_generator(), 2, variance)
    return float(exact_log_likelihood(model, split.batch(0, IMAGES).x).mean())


def observed(variance: float) -> LatentModel:
    return observe(linear_generator(), 2, variance)


def test_the_choice_is_that_of_the_exact_likelihood(validation):
    monitor = RecordingMonitor()
    choice = choose_variance(observed, validation, ANNEALING, variances=GRID, images=IMAGES, seed=0, monitor=monitor)
    exact = {variance: exact_mean(validation, variance) for variance in choice.values}
    assert choice.variance == max(exact, key=exact.__getitem__)
    for variance, value in choice.values.items():
        assert value == pytest.approx(exact[variance], abs=0.2 if variance == 0.001 else 0.05)  # the narrowest
    assert len({round(value) for value in exact.values()}) > 3  # the curve is far from flat
    tried = list(choice.values)
    assert tried[:5] == list(GRID)  # 0.003 and 0.001 are the two worse ones
    assert tried[5:7] == [pytest.approx(math.sqrt(TRUTH * 0.003)), pytest.approx(math.sqrt(TRUTH * 0.03))]
    assert abs(math.log(choice.variance / TRUTH)) < 0.2  # well within a step of the refined grid, 0.56
    assert not choice.at_edge
    assert choice.beyond == 0
    assert sum(monitor.advanced) == 8 * IMAGES <= max_runs(GRID) * IMAGES


def test_it_reads_the_given_images_and_seed_alone(validation):
    few = Annealing(temperatures=5, chains=2, adapt=False)
    run = choose_variance(observed, validation, few, variances=(0.03, 0.01), images=3, seed=4)
    for variance, value in run.values.items():
        result = annealed_importance_sampling(observed(variance), validation, few, seed=4, images=3)
        assert value == float(result["ais"].mean())
    assert run == choose_variance(observed, validation, few, variances=(0.01, 0.03, 0.01), images=3, seed=4)
    assert run != choose_variance(observed, validation, few, variances=(0.01, 0.03), images=3, seed=5)


def search(curve: Callable[[float], float], monkeypatch: pytest.MonkeyPatch, *variances: float) -> VarianceChoice:
    """The search on a curve that is known: the value at each variance, without any annealing."""

    def known(variance: float, *_: object, **__: object) -> dict[str, Tensor]:
        return {"ais": torch.tensor([curve(variance), curve(variance)])}

    monkeypatch.setattr(observation, "annealed_importance_sampling", known)
    split = split_of(torch.zeros(2, *SHAPE))
    return choose_variance(lambda v: v, split, ANNEALING, variances=variances or VARIANCES, images=2, seed=0)


def peak(at: float) -> Callable[[float], float]:
    return lambda variance: -(math.log(variance / at) ** 2)


def test_the_descent_ends_after_two_worse_in_a_row(monkeypatch):
    tenths = (1.0, 0.1, 0.01, 0.001, 1e-4, 1e-5)
    choice = search(peak(0.1), monkeypatch, *tenths)
    assert list(choice.values) == pytest.approx([1.0, 0.1, 0.01, 0.001, math.sqrt(0.001), math.sqrt(0.1), 0.1])
    assert choice.variance == pytest.approx(0.1)
    uneven = dict(zip(tenths, (0.0, 5.0, 4.0, 6.0, 5.9, 5.8), strict=True))  # one worse value does not end it
    choice = search(lambda v: uneven.get(v, -9.0), monkeypatch, *reversed(tenths))
    assert choice.variance == 0.001
    assert list(choice.values)[:6] == list(tenths)
    middle = search(peak(0.04), monkeypatch, *tenths)  # nearer to a midpoint than to the grid
    assert list(middle.values)[-3:] == pytest.approx([math.sqrt(0.001), math.sqrt(0.1), 0.04])
    assert middle.variance == pytest.approx(0.04)  # the curve is a parabola: its top is found at once
    assert not middle.at_edge


@pytest.mark.parametrize(
    ("at", "extra", "nearest", "at_edge"),
    [
        (27.0, [9.0, 27.0], 27.0, True),  # two steps up are all: the best may lie further out
        (10.0, [9.0, 27.0], 9.0, False),
        (2.9, [9.0], 3.0, False),
        (1 / 9.5, [1 / 9, 1 / 27], 1 / 9, False),
        (1 / 40, [1 / 9, 1 / 27], 1 / 27, True),
    ],
)
def test_the_grid_is_carried_on_beyond_its_ends(at, extra, nearest, at_edge, monkeypatch):
    choice = search(peak(at), monkeypatch, 3.0, 1.0, 1 / 3)
    tried = list(choice.values)
    assert tried[3 : 3 + len(extra)] == pytest.approx(extra)
    assert choice.beyond == len(extra)
    assert choice.variance == pytest.approx(nearest if at_edge else at)
    assert choice.at_edge == at_edge
    midpoints = tried[3 + len(extra) :][:2]
    expected = [nearest / math.sqrt(3), nearest * math.sqrt(3)]
    if at_edge:  # the only neighbour is the inner one
        expected = expected[:1] if at > 1 else expected[1:]
    assert midpoints == pytest.approx(expected)
    assert len(tried) <= max_runs((3.0, 1.0, 1 / 3))


def test_values_that_are_not_finite_are_passed_over(monkeypatch):
    for bad in (math.nan, -math.inf, math.inf):
        choice = search(lambda v, bad=bad: bad if v > 0.05 or v < 0.002 else peak(0.003)(v), monkeypatch)
        assert choice.variance == 0.003
        assert choice.values[0.1] == choice.values[0.001] == -math.inf
        with pytest.raises(RunError, match=r"0\.1 to 0\.001"):
            search(lambda v, bad=bad: bad, monkeypatch)


def test_a_generator_of_no_finite_image_is_a_failed_run(validation):
    def broken(variance: float) -> LatentModel:
        model = observed(variance)
        with torch.no_grad():
            model.decoder.affine.bias.fill_(math.nan)
        return model

    with pytest.raises(RunError, match="finite"):
        choose_variance(broken, validation, Annealing(temperatures=3, chains=2), images=2, seed=0)


def test_what_cannot_be_used_is_named(validation):
    quick = Annealing(temperatures=2, chains=1)
    for bad in ((0.1, 0.0), (0.1, -1.0), (0.1, math.nan), (0.1, math.inf), (0.1, "0.01"), (0.1, True)):
        with pytest.raises(InputError, match="must be a number above 0"):
            choose_variance(observed, validation, quick, variances=bad, images=1, seed=0)
    for few in ((), (0.1,), (0.1, 0.1)):
        with pytest.raises(InputError, match="two or more"):
            choose_variance(observed, validation, quick, variances=few, images=1, seed=0)
    with pytest.raises(InputError, match="images"):
        choose_variance(observed, validation, quick, images=0, seed=0)
    with pytest.raises(InputError, match="validation split has none"):
        choose_variance(observed, split_of(torch.zeros(0, *SHAPE)), quick, images=1, seed=0)
    stop = ShutdownSignal()
    stop.signum = 2
    with pytest.raises(Interrupted):
        choose_variance(observed, validation, quick, images=1, seed=0, monitor=Monitor(stop))


# -- a categorical code: a decoder that is piecewise constant in some latent dimensions -------------------------------

CODES, PIXELS = 3, (1, 2, 3)


class Coded(nn.Module):
    """x = M[code] + a z, the code the largest of K standard normal numbers: each has probability 1/K."""

    affine = None

    def __init__(self, spread: float) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(3)
        self.levels = nn.Parameter(0.5 + spread * torch.randn(CODES, *PIXELS, generator=source))
        self.slope = nn.Parameter(0.15 * torch.randn(*PIXELS, generator=source))

    def forward(self, z: Tensor, c: Tensor | None) -> Tensor:
        code = F.one_hot(z[..., 1:].argmax(-1), CODES).to(z.dtype)
        return torch.einsum("...k,kchw->...chw", code, self.levels) + z[..., :1, None, None] * self.slope


def coded(spread: float, variance: float) -> LatentModel:
    return observe(Coded(spread), 1 + CODES, variance, PIXELS)


def exact_coded(model: LatentModel, x: Tensor) -> Tensor:
    """log 1/K sum_k N(x; M_k, a a' + s2 I), [B] nats."""
    decoder = model.decoder
    a = decoder.slope.detach().flatten()
    covariance = torch.outer(a, a) + model.likelihood.log_variance.detach().exp() * torch.eye(len(a))
    parts = MultivariateNormal(decoder.levels.detach().flatten(1), covariance)
    return torch.logsumexp(parts.log_prob(x.flatten(1).double().unsqueeze(1)), 1) - math.log(CODES)


@pytest.mark.parametrize(("spread", "variance"), [(0.05, 0.02), (0.2, 0.01)], ids=["overlapping", "apart"])
def test_annealing_passes_through_a_categorical_code(spread, variance):
    model = coded(spread, variance)
    x, z, _ = simulate(model, list(range(30)), 5)
    shares = F.one_hot(z[:, 1:].argmax(1), CODES).double().mean(0)
    assert (shares > 0.15).all()  # every code is among the images
    split = split_of(x)
    exact = exact_coded(model, split.batch(0, 30).x)
    annealing = Annealing(temperatures=150, chains=128, leapfrog_steps=2)
    error = annealed_importance_sampling(model, split, annealing, seed=0)["ais"] - exact
    assert error.abs().max() < 0.25
    assert error.abs().mean() < 0.07


@pytest.mark.parametrize(("spread", "variance"), [(0.05, 0.02), (0.2, 0.01)], ids=["overlapping", "apart"])
def test_the_bracket_holds_with_a_categorical_code(spread, variance):
    model = coded(spread, variance)
    n = 60
    exact = exact_coded(model, simulate(model, list(range(n)), 6)[0])
    gaps = []
    for temperatures in (6, 150):
        annealing = Annealing(temperatures=temperatures, chains=16, leapfrog_steps=2)
        result = bidirectional(model, annealing, images=n, seed=6)
        lower, upper = exact - result["bdmc_lower"], result["bdmc_upper"] - exact
        assert lower.mean() > -3 * standard_error(lower)
        assert upper.mean() > -3 * standard_error(upper)
        gaps.append(float(lower.mean() + upper.mean()))
    assert gaps[0] > 2 * gaps[1]
    assert gaps[1] < 0.25
