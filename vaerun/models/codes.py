"""InfoGAN's codes: what part of the latent numbers shall be legible in the image (Chen et al. 2016).

Any number of categorical codes, uniform over their values, and of continuous codes, U(-1, 1). The mutual information of
codes and image is bounded from below by L_I = E_{c, x = G(z, c)}[log Q(c | x)] + H(c) (eq. 5); Q is a product of
categorical distributions and of normal ones. For categorical codes L_I <= H(c), their entropy; a continuous code's
differential entropy bounds nothing.

Everything latent is a function of standard normal numbers, so that sampling, interpolation and annealed importance
sampling need to know one prior only: a categorical code is the argmax of as many numbers as it has values (uniform, by
symmetry), a continuous one is 2 Phi(v) - 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vaerun.data.dataset import one_hot
from vaerun.distributions.normal import LOG_2PI
from vaerun.errors import InputError

MINIMUM_VARIANCE = 1e-3  # of Q for a continuous code where it is learned: a generator may write the code exactly


class Codes:
    """The codes of one model.

    Arguments:
        categorical: number of values of each categorical code.
        continuous: number of continuous codes.
        variance: of Q for continuous codes, as in the authors' released code for MNIST; None: Q's own, learned. A
            learned one makes the bound tight and its gradients large: continuous codes then tend to take what
            categorical ones should.

    Attributes:
        size: what the generator sees of them: one-hot vectors, then continuous values.
        noise_dim: how many standard normal numbers they are made of (the same number).
        parameters: how many numbers Q has: logits, then means, then log-variances (unused where these are given).

    Raises InputError for what are no codes.
    """

    def __init__(self, categorical: Sequence[int] = (), continuous: int = 0, *, variance: float | None = 1.0) -> None:
        numbers = [*categorical, continuous]
        whole = all(isinstance(k, int) and not isinstance(k, bool) for k in numbers)
        if not whole or min(categorical, default=2) < 2 or continuous < 0:
            raise InputError(
                "model.codes: categorical must list numbers of values of at least 2, such as [10], and continuous be "
                f"a whole number of at least 0; got {list(categorical)} and {continuous}"
            )
        if not categorical and not continuous:
            raise InputError("model.codes has no code: set model.codes.categorical=[10] or model.codes.continuous=1")
        if variance is not None and not 0 < variance < math.inf:
            raise InputError(f"model.codes.continuous_variance must be above 0, or null to learn it; got {variance}")
        self.categorical, self.continuous, self.variance = tuple(categorical), continuous, variance
        self.size = self.noise_dim = sum(categorical) + continuous
        self.parameters = sum(categorical) + 2 * continuous

    @property
    def entropies(self) -> dict[str, float]:
        """Kinds of codes that there are, with their entropy in nats (continuous: differential)."""
        found = {"categorical": sum(math.log(k) for k in self.categorical), "continuous": self.continuous * math.log(2)}
        return {kind: h for kind, h in found.items() if getattr(self, kind)}

    @property
    def names(self) -> list[str]:
        """categorical_1 ..., continuous_1 ...: the order in which `set_code` counts them."""
        return [f"{kind}_{i + 1}" for kind in self.entropies for i in range(self._count(kind))]

    def _count(self, kind: str) -> int:
        return len(self.categorical) if kind == "categorical" else self.continuous

    def from_noise(self, noise: Tensor) -> Tensor:
        """Standard normal numbers [..., noise_dim] -> codes [..., size]."""
        *scores, values = noise.split([*self.categorical, self.continuous], -1)
        chosen = [one_hot(s.argmax(-1), s.shape[-1]).to(noise.dtype) for s in scores]
        return torch.cat([*chosen, 2 * torch.special.ndtr(values) - 1], -1)

    def set_code(self, code: Tensor, index: int, value: Tensor) -> Tensor:
        """The codes [N, size] with code `index` (counted as in `names`) set to value [N]."""
        parts = list(code.split([*self.categorical, *[1] * self.continuous], -1))
        if index < len(self.categorical):
            parts[index] = one_hot(value.long(), self.categorical[index]).to(code)
        else:
            parts[index] = value.to(code).unsqueeze(-1)
        return torch.cat(parts, -1)

    def log_q(self, parameters: Tensor, code: Tensor) -> dict[str, Tensor]:
        """log Q(c | x) by kind, nats: Q's parameters [B, parameters] and codes [B, size] -> {kind: [B]}."""
        n = len(self.categorical)
        *logits, means, log_variances = parameters.split([*self.categorical, self.continuous, self.continuous], -1)
        *chosen, values = code.split([*self.categorical, self.continuous], -1)
        found = {}
        if n:
            each = [(F.log_softmax(s, -1) * c).sum(-1) for s, c in zip(logits, chosen, strict=True)]
            found["categorical"] = torch.stack(each).sum(0)
        if self.continuous:
            variance = log_variances.exp() + MINIMUM_VARIANCE
            if self.variance is not None:
                variance = torch.full_like(means, self.variance)
            each_value = (values - means).square() / variance + variance.log() + LOG_2PI
            found["continuous"] = -0.5 * each_value.sum(-1)
        return found

    def information(self, parameters: Tensor, code: Tensor) -> dict[str, Tensor]:
        """log Q(c | x) + H(c) by kind, [B] nats each: its mean is the bound L_I on the mutual information."""
        entropy = self.entropies
        return {kind: value + entropy[kind] for kind, value in self.log_q(parameters, code).items()}

    def predict(self, parameters: Tensor) -> list[Tensor]:
        """Q's most probable value of each categorical code, [B] each."""
        logits = parameters.split([*self.categorical, 2 * self.continuous], -1)[: len(self.categorical)]
        return [s.argmax(-1) for s in logits]
