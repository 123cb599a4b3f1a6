"""Two Gaussians on a line, where everything that Goodfellow et al. (2014) prove can be computed by quadrature.

Row i of a batch is node i of a rule: its real pixel m + s t_i, its noise t_i. So the weighted sum of the objective's
own loss over the batch is the expectation over real and generated images. The trapezoidal rule on a Gaussian's whole
range errs by rounding only.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor, nn

from vaerun.estimators import AdversarialLoss, Minimax, NonSaturating
from vaerun.models import AdversarialModel
from vaerun.nets import MLPDiscriminator
from vaerun.objectives import Adversarial

MEAN, DEVIATION = 0.2, 0.5  # of real pixels within [-1, 1] as the discriminator sees them
COARSE, FINE = 501, 20_001  # nodes


def rule(nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Real images [n, 1, 1, 1] with pixels within [0, 1], noise [n, 1] and weights [n]."""
    t = torch.linspace(-9, 9, nodes)
    weights = torch.exp(-0.5 * t.square()) / math.sqrt(2 * math.pi) * (t[1] - t[0])
    return ((MEAN + DEVIATION * t + 1) / 2).view(-1, 1, 1, 1), t.unsqueeze(-1), weights


class Affine(nn.Module):
    """p_G = N(shift, scale^2)."""

    def __init__(self, shift: float, scale: float) -> None:
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.tensor(shift)), nn.Parameter(torch.tensor(scale))

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return (self.shift + self.scale * z).view(-1, 1, 1, 1)


class Quadratic(nn.Module):
    """Features t and t^2: with a bias all that log p / p_G is made of."""

    features = 2

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return torch.cat([x.flatten(1), x.flatten(1).square()], 1)


def objective(trunk: nn.Module, estimator: AdversarialLoss, shift: float = -0.3, scale: float = 0.8) -> Adversarial:
    model = AdversarialModel(Affine(shift, scale), trunk, latent_dim=1, image_shape=(1, 1, 1))
    return Adversarial(model, estimator)


def value(result: Adversarial, nodes: int = COARSE) -> Tensor:
    """V(D, G), nats."""
    x, noise, weights = rule(nodes)
    return -(weights * result.discriminator_loss(x, None, noise)[0]).sum()


def train_discriminator(result: Adversarial, iterations: int) -> None:
    group = result.phases["discriminator"].groups["discriminator"]
    optimiser = torch.optim.LBFGS(
        group, max_iter=iterations, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -value(result)
        loss.backward()
        return loss

    optimiser.step(closure)


def divergences(shift: float, scale: float) -> tuple[float, float]:
    """JSD(p, p_G) by adaptive quadrature and KL(p_G || p) in closed form, nats."""

    def density(x: float) -> float:
        p, q = norm.pdf(x, MEAN, DEVIATION), norm.pdf(x, shift, scale)
        parts = [a * math.log(2 * a / (p + q)) for a in (p, q) if a > 0]
        return 0.5 * sum(parts)

    jsd = quad(density, -12, 12, epsabs=1e-13, epsrel=1e-13, limit=500, points=[MEAN, shift])[0]
    ratio = scale / DEVIATION
    kl = 0.5 * (ratio**2 + ((shift - MEAN) / DEVIATION) ** 2 - 1) - math.log(ratio)
    return jsd, kl


def optimal(x: Tensor, shift: float = -0.3, scale: float = 0.8) -> Tensor:
    """p / (p + p_G)."""
    p, q = (torch.distributions.Normal(m, s).log_prob(x) for m, s in ((MEAN, DEVIATION), (shift, scale)))
    return torch.sigmoid(p - q)


def discriminated(result: Adversarial, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.sigmoid(result.model.discriminator(x.view(-1, 1, 1, 1))[0])


@pytest.mark.parametrize(("shift", "scale"), [(-0.3, 0.8), (0.9, 0.4), (MEAN, DEVIATION)])
def test_trained_discriminator_and_its_value(shift: float, scale: float) -> None:
    result = objective(Quadratic(), NonSaturating(), shift, scale)
    bound = -math.log(4) + 2 * divergences(shift, scale)[0]
    assert value(result).item() < bound - 1e-3
    train_discriminator(result, 200)
    x = torch.linspace(-2, 2, 101)
    torch.testing.assert_close(discriminated(result, x), optimal(x, shift, scale), rtol=0, atol=1e-6)
    assert value(result).item() == pytest.approx(bound, abs=1e-11)
    if (shift, scale) == (MEAN, DEVIATION):  # theorem 1: the game's solution
        assert bound == pytest.approx(-math.log(4), abs=1e-12)


def test_network_approaches_the_optimum_from_below() -> None:
    """The shipped network: piecewise linear, so close to the optimum and never above it."""
    result = objective(MLPDiscriminator((1, 1, 1), hidden=[24, 24]), Minimax())
    bound = -math.log(4) + 2 * divergences(-0.3, 0.8)[0]
    assert value(result).item() < bound - 0.05
    train_discriminator(result, 400)
    # On other nodes than it was trained on, whose gaps its kinks have learned (by 1e-5 nats).
    assert bound - 5e-4 < value(result, FINE).item() < bound
    x = torch.linspace(-1.5, 1.5, 101)
    torch.testing.assert_close(discriminated(result, x), optimal(x), rtol=0, atol=0.02)


@pytest.mark.parametrize("estimator", [Minimax(), NonSaturating()])
def test_generator_gradient_at_the_optimum(estimator: AdversarialLoss) -> None:
    """Minimax: that of 2 JSD; non-saturating: that of KL(p_G || p) - 2 JSD (Arjovsky & Bottou 2017, theorem 2.5)."""
    result = objective(Quadratic(), estimator)
    train_discriminator(result, 200)
    _, noise, weights = rule(COARSE)
    (weights * result.generator_loss(None, noise)[0]).sum().backward()
    h = 1e-4

    def target(shift: float, scale: float) -> float:
        jsd, kl = divergences(shift, scale)
        return 2 * jsd if isinstance(estimator, Minimax) else kl - 2 * jsd

    generator = result.model.generator
    for parameter, (a, b) in ((generator.shift, (h, 0)), (generator.scale, (0, h))):
        slope = (target(-0.3 + a, 0.8 + b) - target(-0.3 - a, 0.8 - b)) / (2 * h)
        assert float(parameter.grad) == pytest.approx(slope, abs=1e-6)
