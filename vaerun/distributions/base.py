"""The interface of all distributions over z, on top of that of torch.distributions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from vaerun.deprecation import deprecated_alias, warn_renamed
from vaerun.randomness import batch_normal

RENAMED = {"held": "detach", "free": "local_parameters"}
"""Old and new names of methods that plug-ins may call or override."""


class LatentDistribution(Distribution):
    """A distribution over z, batch shape [B], event shape [d], as the image of standard normal noise.

    `transform(noise)` is the reparameterisation; `rsample` and `rsample_with_log_prob` follow from it.
    It is a value: the module that returns it keeps no reference to it.
    """

    has_rsample = True
    exact_moments = True
    """Whether `mean` and `variance` have a closed form; otherwise they are estimated from samples."""
    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch.distributions' own interface)
    support = constraints.real_vector

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for old, new in RENAMED.items():
            names = f"{cls.__name__}.{old}", f"{cls.__name__}.{new}"
            if new in vars(cls):
                setattr(cls, old, deprecated_alias(vars(cls)[new], *names))
            elif old in vars(cls):
                warn_renamed(*names)
                setattr(cls, new, vars(cls)[old])

    def transform(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Standard normal noise [K, B, d] -> z [K, B, d] and log q(z) [K, B] in nats, both differentiable."""
        raise NotImplementedError

    def detach(self) -> Self:
        """The same distribution with its parameters detached."""
        raise NotImplementedError

    def local_parameters(self) -> tuple[list[Tensor], Callable[[], Self]]:
        """Local variational parameters: each image's own free variables, initialised at this distribution's values.

        Returns leaf tensors [B, ...] that require gradients, and a function that builds the distribution from them.
        """
        raise NotImplementedError

    def at_mode(self, mode: Tensor, cholesky: Tensor) -> Self | None:
        """The member of this family centred at a mode of the posterior, as the start of a search for the best member.

        Arguments:
            mode: the new `centre`, [B, d].
            cholesky: factor C of the precision C C' there, [B, d, d]. Scales follow it where the family says how,
                otherwise they are this distribution's.

        Returns None if the family cannot be moved, the default.
        """
        return None

    @property
    def centre(self) -> Tensor:
        """The image of zero noise [B, d]: the mean if q is Gaussian, otherwise one typical point."""
        like = self._like()
        zero = torch.zeros(1, *self.batch_shape, *self.event_shape, dtype=like.dtype, device=like.device)
        return self.transform(zero)[0].squeeze(0)

    def _like(self) -> Tensor:
        """Any parameter, for its dtype and device."""
        raise NotImplementedError

    def rsample_with_log_prob(
        self, sample_shape: torch.Size | tuple[int, ...] = (), noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """z [*sample_shape, B, d] and log q(z) [*sample_shape, B], without inverting the transform.

        Arguments:
            sample_shape: leading shape, usually (K,).
            noise: standard normal noise of z's shape; None: drawn from torch's generator.
        """
        if noise is None:
            like = self._like()
            shape = self._extended_shape(torch.Size(sample_shape))
            noise = batch_normal(shape, len(sample_shape), dtype=like.dtype, device=like.device)
        return self.transform(noise)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:  # type: ignore[override]
        return self.rsample_with_log_prob(sample_shape)[0]


def as_leaf(value: Tensor) -> Tensor:
    """A detached copy that requires gradients."""
    return value.detach().clone().requires_grad_()
