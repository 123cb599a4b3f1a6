"""The two losses of generative adversarial networks (Goodfellow et al. 2014).

With D = sigmoid(logit), the value V = E log D(x) + E log(1 - D(G(z))) is what the discriminator ascends. The generator
descends E log(1 - D(G(z))) itself (minimax, eq. 1) or descends -E log D(G(z)) (non-saturating, section 3): the same
fixed point, with gradients that do not vanish while the discriminator wins. For a fixed generator the optimum is
D* = p / (p + p_G), where V = -log 4 + 2 JSD(p, p_G) (proposition 1, theorem 1).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vaerun.errors import InputError


class AdversarialLoss:
    """Losses per image, from logits; both to be descended.

    Arguments:
        label_smoothing: s; real images have the target 1 - s, generated ones 0 (one-sided: Salimans et al. 2016,
            section 3.4).

    Raises InputError for a smoothing outside [0, 0.5).
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 0.5:
            raise InputError(f"estimator.label_smoothing must be at least 0 and below 0.5, got {label_smoothing}")
        self.label_smoothing = label_smoothing

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Logits of real and generated images, [B] each -> -V [B] nats (with the targets smoothed)."""
        smoothing = self.label_smoothing
        return (1 - smoothing) * F.softplus(-real) + smoothing * F.softplus(real) + F.softplus(fake)

    def generator(self, fake: Tensor) -> Tensor:
        """Logits of generated images [B] -> [B] nats."""
        raise NotImplementedError


class NonSaturating(AdversarialLoss):
    """The generator descends -log D(G(z))."""

    def generator(self, fake: Tensor) -> Tensor:
        return F.softplus(-fake)


class Minimax(AdversarialLoss):
    """The generator descends log(1 - D(G(z)))."""

    def generator(self, fake: Tensor) -> Tensor:
        return -F.softplus(fake)
