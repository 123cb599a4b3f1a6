"""Inverse autoregressive flow over an amortised Gaussian (Kingma et al. 2016, section 3 and algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zuko.nn import MaskedMLP

from vaerun.distributions import AutoregressiveFlow, DiagonalNormal
from vaerun.errors import InputError
from vaerun.inference.amortised import Amortised
from vaerun.inference.common import check_steps
from vaerun.models import Joint
from vaerun.nets.init import check_widths, head


class ELU(nn.ELU):
    """torch's ELU; without gradients as exp(x) - 1, equal to the rounding of 1.

    torch's expm1 takes ten times as long as its exp on a CPU, most of the time of sampling a flow.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(x)
        return x.clamp(max=0).exp() - 1 + x.relu()


class MaskedNetwork(nn.Module):
    """z [..., B, d], context [B, n] -> m, s [..., B, d]; entry i depends on z_1 ... z_{i-1} and all of the context.

    A masked network as in MADE (Germain et al. 2015), with ELUs.

    Arguments:
        latent_dim: d.
        context: n, at least 1.
        hidden: widths of the hidden layers, each at least d: a narrower layer would disconnect some entries.
        backwards: entry i depends on z_{i+1} ... z_d instead.
    """

    def __init__(self, latent_dim: int, context: int, hidden: Sequence[int], *, backwards: bool = False) -> None:
        super().__init__()
        self.latent_dim, self.backwards = latent_dim, backwards
        full = torch.ones(latent_dim, latent_dim, dtype=torch.bool)
        earlier = full.triu(1) if backwards else full.tril(-1)
        adjacency = torch.cat([earlier, torch.ones(latent_dim, context, dtype=torch.bool)], dim=1)
        self.masked = MaskedMLP(adjacency.repeat(2, 1), hidden, ELU)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        # The first layer is masked(cat(z, context)); its context part is computed once for all samples of an image.
        first, *rest = cast(Any, self.masked)
        z_weight, context_weight = (first.mask * first.weight).split([self.latent_dim, context.shape[-1]], dim=1)
        h = F.linear(z, z_weight) + F.linear(context, context_weight, first.bias)
        for layer in rest:
            h = layer(h)
        m, s = h.chunk(2, dim=-1)
        return m, s


class InverseAutoregressive(nn.Module):
    """q(z | x, c): N(m(x, c), diag v(x, c)) followed by T autoregressive steps; T = 0 is the amortised Gaussian.

    The order of the dimensions is reversed after each step.

    Arguments:
        encoder, latent_dim: as in Amortised.
        steps: T.
        hidden: widths of the hidden layers of each step's network, each at least d.
        context: number of features the steps are conditioned on, a linear map of the encoder's; None: as many as those.
    """

    def __init__(
        self,
        encoder: nn.Module | None,
        latent_dim: int,
        *,
        steps: int,
        hidden: Sequence[int] = (256,),
        context: int | None = None,
    ) -> None:
        super().__init__()
        self.base = Amortised(encoder, latent_dim)
        check_steps(steps)
        widths = check_widths("model.inference.hidden", hidden)
        if any(width < latent_dim for width in widths):
            raise InputError(
                f"model.inference.hidden={widths} has a layer with fewer than model.latent_dim={latent_dim} units, "
                "which disconnects some dimensions of the flow: make it wider"
            )
        features = self.base.mean.in_features
        if context is not None and (not isinstance(context, int) or isinstance(context, bool) or context < 1):
            raise InputError(f"model.inference.context must be an integer of at least 1 or null, got {context}")
        n = features if context is None else context
        self.context = head(features, n) if steps else None
        self.networks = nn.ModuleList(
            MaskedNetwork(latent_dim, n, widths, backwards=step % 2 == 1) for step in range(steps)
        )

    def forward(self, joint: Joint) -> AutoregressiveFlow | DiagonalNormal:
        h, mean, log_variance = self.base.parameters_of(joint)
        base = DiagonalNormal(mean, log_variance)
        if self.context is None:
            return base
        return AutoregressiveFlow(base, self.context(h), [cast(MaskedNetwork, n) for n in self.networks])
