"""The contract of every estimator, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vaerun.distributions import LatentDistribution
from vaerun.errors import InputError
from vaerun.models import Joint


@dataclass(frozen=True)
class Estimate:
    """What an estimator gives; nothing is reduced over the batch.

    Attributes:
        bound: [B] nats, to report.
        surrogate: [B], to ascend; its value means nothing unless it is the bound itself.
        terms: [B] nats each: `reconstruction` and `kl`, whose difference is the ELBO (every weight 1).
        name: of the bound, in records.
    """

    bound: Tensor
    surrogate: Tensor
    terms: dict[str, Tensor]
    name: str = "elbo"


class Estimator(Protocol):
    """A function (joint, q, K) of a joint, a distribution over z and the number of samples.

    Options that change during training (`kl_weight`) are keyword arguments of those that have them. An estimator with
    the attribute `holds_joint` must be given a q that was inferred from `joint.held()`.
    """

    def __call__(self, *args: Any, **options: Any) -> Estimate: ...


def estimate(
    estimator: Estimator, infer: Callable[[Joint], LatentDistribution], joint: Joint, samples: int, **options: Any
) -> Estimate:
    """Infer q and estimate: the one way to use an estimator that is right for all of them."""
    holds = getattr(estimator, "holds_joint", False)
    return estimator(joint, infer(joint.held() if holds else joint), samples, **options)


def whole_batch(estimator: Estimator) -> str | None:
    """The setting by which an estimator looks at a batch as a whole; None: what it gives for an image is its own.

    An estimator with options that do so has them named in its attribute `of_the_batch`, by option.
    """
    options: dict[str, Any] = getattr(estimator, "keywords", {})
    for option in getattr(estimator, "of_the_batch", ()):
        if options.get(option):
            return f"estimator.{option}={options[option]}"
    return getattr(estimator, "whole_batch", None)


@dataclass(frozen=True)
class Draw:
    """K samples of q and their log-densities.

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
        """The two parts of mean_K log w, [B] nats each."""
        return {"reconstruction": self.log_likelihood.mean(0), "kl": (self.log_q - self.log_prior).mean(0)}


def reparameterised(joint: Joint, q: LatentDistribution, samples: int) -> tuple[Tensor, Tensor]:
    """K samples z [K, B, d] and log q(z | x) [K, B], both differentiable in q's parameters.

    Raises InputError where z is no differentiable function of them.
    """
    if not q.has_rsample:
        raise InputError(
            f"{type(q).__name__} cannot be reparameterised, so its gradient cannot take the path through z: use "
            "estimator=score_function or estimator=wake_sleep"
        )
    return q.rsample_with_log_prob((samples,), noise=joint.noise("posterior", samples))


def pathwise(joint: Joint, q: LatentDistribution, samples: int, held: bool = False) -> Draw:
    """K reparameterised samples with their densities.

    Arguments:
        joint, q: log p(x, z) and q(z | x).
        samples: K.
        held: evaluate log q with its parameters held: its gradient then flows through z alone.

    Raises InputError as reparameterised does.
    """
    z, log_q = reparameterised(joint, q, samples)
    if held:
        z = z.view_as(z)  # an alias: a hook on it sees the gradient of this use of z alone
        log_q = q.held().log_prob(z)
    return Draw(z, log_q, joint.log_likelihood(z), joint.prior.log_prob(z))


def at_held_samples(joint: Joint, q: LatentDistribution, samples: int) -> Draw:
    """K samples that carry no gradient; log p(x, z) and log q(z | x) are functions of their parameters alone."""
    with torch.no_grad():
        z = q.transform(joint.noise("posterior", samples))[0]
    return Draw(z, q.log_prob(z), joint.log_likelihood(z), joint.prior.log_prob(z))
