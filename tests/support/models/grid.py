"""A latent variable with finite support: every expectation is a sum, and samples cannot be reparameterised."""

from __future__ import annotations

import torch
from support.models.members import make_data, make_model
from torch import Tensor, nn

from vaerun.distributions import LatentDistribution
from vaerun.models import Joint, LatentModel

COUNTS = torch.tensor([[5, 2, 1, 8, 4], [1, 9, 3, 3, 4], [4, 4, 4, 4, 4]])
"""How often q takes each of the M = 5 points among 20 samples, for each of 3 images."""


class Grid(LatentDistribution):
    """Probabilities softmax(logits) [B, M] on points [M, d]; its samples are the points with indices `index` [K, B]."""

    has_rsample = False

    def __init__(self, points: Tensor, logits: Tensor, index: Tensor | None = None) -> None:
        self.points, self.logits, self.index = points, logits, index
        super().__init__(logits.shape[:1], points.shape[1:], validate_args=False)

    @property
    def log_probabilities(self) -> Tensor:
        """[B, M] nats."""
        return self.logits.log_softmax(-1)

    def transform(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        z = self.points[self.index]
        assert z.shape == noise.shape
        return z, self.log_prob(z)

    def log_prob(self, z: Tensor) -> Tensor:
        """[..., B, d] -> [..., B] nats, for z among the points."""
        result = (z.unsqueeze(-2) == self.points).all(-1)
        assert result.any(-1).all()
        return (result * self.log_probabilities).sum(-1)

    def detach(self) -> Grid:
        return Grid(self.points, self.logits.detach(), self.index)

    def _like(self) -> Tensor:
        return self.logits


class GridInference(nn.Module):
    """q in the proportions of COUNTS, sampled in exactly these; its logits lean on the decoder as Laplace's do.

    The decoder moves q's logits (by zero where it stands), so that q has a gradient in it that a held joint takes away.
    """

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self.points, self.logits = points, nn.Parameter(COUNTS.log().to(points.dtype))

    def forward(self, joint: Joint) -> Grid:
        at_points = joint.log_likelihood(on_points(self.points, len(joint.x))).mT  # [B, M]
        index = torch.stack([torch.repeat_interleave(torch.arange(len(row)), row) for row in COUNTS], 1)
        return Grid(self.points, self.logits + at_points - at_points.detach(), index)


def on_points(points: Tensor, b: int) -> Tensor:
    """[M, B, d]."""
    return points.unsqueeze(1).expand(-1, b, -1)


def grid_model() -> tuple[LatentModel, nn.Parameter, Tensor]:
    """A model whose q is a GridInference, the logits [M] of its prior on the same points, and x of 3 images."""
    model = make_model("amortised", d=2)
    points = torch.randn(COUNTS.shape[1], 2, generator=torch.Generator().manual_seed(2))
    model.inference = GridInference(points)
    return model, nn.Parameter(torch.tensor([0.3, -0.2, 0.5, 0.0, -0.6])), make_data(model, len(COUNTS))[0]


def grid_joint(model: LatentModel, prior: Tensor, x: Tensor) -> Joint:
    joint = model.joint(x)
    joint.prior = Grid(model.inference.points, prior.expand(len(x), -1))
    return joint


def log_joint(joint: Joint) -> Tensor:
    """log p(x, z) at all points, [B, M] nats."""
    return joint.log_prob(on_points(joint.prior.points, len(joint.x))).mT


def gradients(value: Tensor, model: LatentModel, prior: Tensor) -> dict[str, Tensor]:
    """Of the model's parameters (the prior's included) and of q's own."""
    model_parameters = [p for n, p in model.named_parameters() if not n.startswith("inference.")] + [prior]
    result = torch.autograd.grad(value, [*model_parameters, model.inference.logits], materialize_grads=True)
    return {"p": torch.cat([g.flatten() for g in result[:-1]]), "q": result[-1]}
