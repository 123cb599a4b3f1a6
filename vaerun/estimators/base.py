"""The interface of all estimators, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vaerun.deprecation import attribute_name, module_aliases, warn_renamed
from vaerun.distributions import LatentDistribution
from vaerun.errors import InputError
from vaerun.models import Joint


@dataclass(frozen=True)
class Estimate:
    """The result of an estimator, not reduced over the batch.

    Attributes:
        bound: to report, [B] nats.
        surrogate: to maximise, [B]; only its gradient is meaningful, unless it is the bound itself.
        terms: `reconstruction` and `kl`, [B] nats each, whose difference is the ELBO (with KL weight 1).
        name: of the bound, in logs and results.
    """

    bound: Tensor
    surrogate: Tensor
    terms: dict[str, Tensor]
    name: str = "elbo"


class Estimator(Protocol):
    """A function (joint, q, K) of the joint, the posterior and the number of samples.

    Options that change during training (`kl_weight`) are keyword arguments. Optional attributes:

        detach_joint: True if q must be inferred from `joint.detach()`.
        batch_coupling_options: options that, when set, make an image's estimate depend on the rest of its batch.
        batch_coupling: for an estimator that always does so, the setting responsible, as KEY=VALUE.
    """

    def __call__(self, *args: Any, **options: Any) -> Estimate: ...


def estimate(
    estimator: Estimator, infer: Callable[[Joint], LatentDistribution], joint: Joint, samples: int, **options: Any
) -> Estimate:
    """Infer q and estimate; the only call that is correct for every estimator."""
    detach = _attribute(estimator, "detach_joint", "holds_joint", False)
    return estimator(joint, infer(joint.detach() if detach else joint), samples, **options)


def batch_coupling(estimator: Estimator) -> str | None:
    """The setting that makes an image's estimate depend on the rest of its batch, as KEY=VALUE; None: none does."""
    options: dict[str, Any] = getattr(estimator, "keywords", {})
    for option in _attribute(estimator, "batch_coupling_options", "of_the_batch", ()):
        if options.get(option):
            return f"estimator.{option}={options[option]}"
    return _attribute(estimator, "batch_coupling", "whole_batch", None)


def _attribute(estimator: Estimator, name: str, old_name: str, default: Any) -> Any:
    """An optional attribute of an estimator, which a plug-in may still set by its old name."""
    return getattr(estimator, attribute_name(estimator, name, old_name), default)


@dataclass(frozen=True)
class SampleTerms:
    """K samples of q with their log-densities.

    Attributes:
        z: [K, B, d].
        log_q: log q(z | x), [K, B] nats.
        log_likelihood: log p(x | z), [K, B] nats.
        log_prior: log p(z), [K, B] nats.
    """

    z: Tensor
    log_q: Tensor
    log_likelihood: Tensor
    log_prior: Tensor

    @property
    def log_p(self) -> Tensor:
        """log p(x, z), [K, B] nats."""
        return self.log_likelihood + self.log_prior

    @property
    def log_w(self) -> Tensor:
        """log w = log p(x, z) - log q(z | x), [K, B] nats."""
        return self.log_p - self.log_q

    @property
    def terms(self) -> dict[str, Tensor]:
        """The two terms of mean_K log w, [B] nats each."""
        return {"reconstruction": self.log_likelihood.mean(0), "kl": (self.log_q - self.log_prior).mean(0)}


def reparameterised_samples(joint: Joint, q: LatentDistribution, samples: int) -> tuple[Tensor, Tensor]:
    """K samples z [K, B, d] and log q(z | x) [K, B], both differentiable in q's parameters.

    Raises InputError if q cannot be reparameterised.
    """
    if not q.has_rsample:
        raise InputError(
            f"{type(q).__name__} cannot be reparameterised, so there is no gradient through z: use "
            "estimator=score_function or estimator=wake_sleep"
        )
    return q.rsample_with_log_prob((samples,), noise=joint.noise("posterior", samples))


def reparameterised_terms(joint: Joint, q: LatentDistribution, samples: int, detach_q: bool = False) -> SampleTerms:
    """K reparameterised samples with their densities.

    Arguments:
        joint, q: log p(x, z) and q(z | x).
        samples: K.
        detach_q: evaluate log q with its parameters detached, so that its gradient flows through z alone.

    Raises InputError if q cannot be reparameterised.
    """
    z, log_q = reparameterised_samples(joint, q, samples)
    if detach_q:
        z = z.view_as(z)  # a view: a hook on it sees the gradient of this use of z only
        log_q = q.detach().log_prob(z)
    return SampleTerms(z, log_q, joint.log_likelihood(z), joint.prior.log_prob(z))


def detached_samples(joint: Joint, q: LatentDistribution, samples: int) -> SampleTerms:
    """K detached samples; log p(x, z) and log q(z | x) then depend on their parameters alone."""
    with torch.no_grad():
        z = q.transform(joint.noise("posterior", samples))[0]
    return SampleTerms(z, q.log_prob(z), joint.log_likelihood(z), joint.prior.log_prob(z))


def pathwise(joint: Joint, q: LatentDistribution, samples: int, held: bool = False) -> SampleTerms:
    """The old name of `reparameterised_terms`."""
    warn_renamed("pathwise", "reparameterised_terms")
    return reparameterised_terms(joint, q, samples, held)


__getattr__ = module_aliases(
    __name__,
    {
        "Draw": "SampleTerms",
        "at_held_samples": "detached_samples",
        "reparameterised": "reparameterised_samples",
        "whole_batch": "batch_coupling",
    },
)
