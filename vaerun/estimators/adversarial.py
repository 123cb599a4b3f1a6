"""The two losses of generative adversarial networks (Goodfellow et al. 2014).

With D = sigmoid(logit), the discriminator maximises V = E log D(x) + E log(1 - D(G(z))). The generator minimises
E log(1 - D(G(z))) (minimax, eq. 1) or -E log D(G(z)) (non-saturating, section 3), which has the same fixed point but
gradients that do not vanish while the discriminator wins. For a fixed generator the optimal discriminator is
D* = p / (p + p_G), where V = -log 4 + 2 JSD(p, p_G) (proposition 1, theorem 1).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vaerun.errors import InputError


class AdversarialLoss:
    """Losses per image, from logits; both are minimised.

    Arguments:
        label_smoothing: s; the target is 1 - s for real images and 0 for generated ones (one-sided, Salimans et al.
            2016, section 3.4). Raises InputError outside [0, 0.5).
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 0.5:
            raise InputError(f"estimator.label_smoothing must be at least 0 and below 0.5, got {label_smoothing}")
        self.label_smoothing = label_smoothing

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Logits of real and generated images, [B] each -> -V [B] nats (with smoothed targets)."""
        smoothing = self.label_smoothing
        return (1 - smoothing) * F.softplus(-real) + smoothing * F.softplus(real) + F.softplus(fake)

    def generator(self, fake: Tensor) -> Tensor:
        """Logits of generated images [B] -> [B] nats."""
        raise NotImplementedError


class NonSaturating(AdversarialLoss):
    """The generator minimises -log D(G(z))."""

    def generator(self, fake: Tensor) -> Tensor:
        return F.softplus(-fake)


class Minimax(AdversarialLoss):
    """The generator minimises log(1 - D(G(z)))."""

    def generator(self, fake: Tensor) -> Tensor:
        return -F.softplus(fake)
