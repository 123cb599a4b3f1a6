"""InfoGAN's codes: the part of the latent input that Q must be able to predict from the image (Chen et al. 2016).

There may be any number of categorical codes, uniform over their values, and of continuous codes, U(-1, 1). The mutual
information of codes and image is bounded below by L_I = E_{c, x = G(z, c)}[log Q(c | x)] + H(c) (eq. 5), Q being a
product of categorical and normal distributions. For categorical codes L_I <= H(c), their entropy; the differential
entropy of a continuous code bounds nothing.

All latent variables are functions of standard normal noise, so that sampling, interpolation and annealed importance
sampling deal with a single prior: a categorical code is the argmax of as many normal variates as it has values (uniform
by symmetry), a continuous one is 2 Phi(v) - 1.
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

MINIMUM_VARIANCE = 1e-3  # lower bound of Q's learned variance: a generator may encode a continuous code exactly


class Codes:
    """The codes of one model.

    Arguments:
        categorical: number of values of each categorical code.
        continuous: number of continuous codes.
        variance: of Q for continuous codes, fixed as in the authors' code for MNIST; None: learned. A learned variance
            makes the bound tight and its gradients large: continuous codes then tend to take over what categorical
            ones should encode.

    Attributes:
        size: number of the generator's inputs for the codes: one-hot vectors, then continuous values.
        noise_dim: number of standard normal variates they are made from (equal to size).
        parameters: number of outputs of Q: logits, then means, then log-variances (unused if the variance is fixed).

    Raises InputError for invalid numbers of codes or values, or an invalid variance.
    """

    def __init__(self, categorical: Sequence[int] = (), continuous: int = 0, *, variance: float | None = 1.0) -> None:
        numbers = [*categorical, continuous]
        integers = all(isinstance(k, int) and not isinstance(k, bool) for k in numbers)
        if not integers or min(categorical, default=2) < 2 or continuous < 0:
            raise InputError(
                "model.codes.categorical must list numbers of values, each at least 2, such as [10], and "
                "model.codes.continuous must be an integer of at least 0, "
                f"got {list(categorical)} and {continuous}"
            )
        if not categorical and not continuous:
            raise InputError(
                "model.codes defines no code: set model.codes.categorical=[10] or model.codes.continuous=1"
            )
        if variance is not None and not 0 < variance < math.inf:
            raise InputError(f"model.codes.continuous_variance must be above 0, or null to learn it; got {variance}")
        self.categorical, self.continuous, self.variance = tuple(categorical), continuous, variance
        self.size = self.noise_dim = sum(categorical) + continuous
        self.parameters = sum(categorical) + 2 * continuous

    @property
    def entropies(self) -> dict[str, float]:
        """Entropy in nats of all codes of each kind present (continuous: differential)."""
        entropy = {
            "categorical": sum(math.log(k) for k in self.categorical),
            "continuous": self.continuous * math.log(2),
        }
        return {kind: h for kind, h in entropy.items() if getattr(self, kind)}

    @property
    def names(self) -> list[str]:
        """categorical_1 ..., continuous_1 ...: in the order of the indices of `set_code`."""
        return [f"{kind}_{i + 1}" for kind in self.entropies for i in range(self._count(kind))]

    def _count(self, kind: str) -> int:
        return len(self.categorical) if kind == "categorical" else self.continuous

    def from_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise [..., noise_dim] -> codes [..., size]."""
        *scores, values = noise.split([*self.categorical, self.continuous], -1)
        one_hots = [one_hot(s.argmax(-1), s.shape[-1]).to(noise.dtype) for s in scores]
        return torch.cat([*one_hots, 2 * torch.special.ndtr(values) - 1], -1)

    def set_code(self, code: Tensor, index: int, value: Tensor) -> Tensor:
        """The codes [N, size] with code `index` (in the order of `names`) set to value [N]."""
        parts = list(code.split([*self.categorical, *[1] * self.continuous], -1))
        if index < len(self.categorical):
            parts[index] = one_hot(value.long(), self.categorical[index]).to(code)
        else:
            parts[index] = value.to(code).unsqueeze(-1)
        return torch.cat(parts, -1)

    def log_q(self, parameters: Tensor, code: Tensor) -> dict[str, Tensor]:
        """log Q(c | x) by kind in nats: Q's parameters [B, parameters] and codes [B, size] -> {kind: [B]}."""
        *logits, means, log_variances = parameters.split([*self.categorical, self.continuous, self.continuous], -1)
        *one_hots, values = code.split([*self.categorical, self.continuous], -1)
        log_q = {}
        if self.categorical:
            per_code = [(F.log_softmax(s, -1) * c).sum(-1) for s, c in zip(logits, one_hots, strict=True)]
            log_q["categorical"] = torch.stack(per_code).sum(0)
        if self.continuous:
            variance = log_variances.exp() + MINIMUM_VARIANCE
            if self.variance is not None:
                variance = torch.full_like(means, self.variance)
            terms = (values - means).square() / variance + variance.log() + LOG_2PI
            log_q["continuous"] = -0.5 * terms.sum(-1)
        return log_q

    def information(self, parameters: Tensor, code: Tensor) -> dict[str, Tensor]:
        """log Q(c | x) + H(c) by kind, [B] nats each; the mean is the bound L_I on the mutual information."""
        entropy = self.entropies
        return {kind: value + entropy[kind] for kind, value in self.log_q(parameters, code).items()}

    def predict(self, parameters: Tensor) -> list[Tensor]:
        """Q's most probable value of each categorical code, [B] each."""
        logits = parameters.split([*self.categorical, 2 * self.continuous], -1)[: len(self.categorical)]
        return [s.argmax(-1) for s in logits]
