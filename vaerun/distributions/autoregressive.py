"""Inverse autoregressive flow: the image of a diagonal normal under T gated autoregressive steps (Kingma et al. 2016).

Step t maps e to f(e) = g(e) * e + (1 - g(e)) * m(e), g = sigmoid(s + 3/2), where entry i of (m, s) sees the context and
the entries of e that come before i (eq. 13 and 14). So df/de is triangular with g on its diagonal, and
log q(z) = log q_0(z_0) - sum_t sum_i log g_i (eq. 12): a sample takes one network pass per step.

The density at an arbitrary z needs the inverse, which is solved for one entry per pass, in d passes. These are not
differentiated: at the solution e of f(e; w) = z the implicit function theorem gives de/dz = J^-1 and
de/dw = -J^-1 df/dw, J = df/de. Hence

    u = e + J^-1 (z - f(e; w))    with e and J detached

has the value of e and its exact first derivatives; log g(u) is likewise expanded to first order about e.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaerun.distributions.base import LatentDistribution, as_leaf
from vaerun.distributions.detached import detached_module
from vaerun.distributions.normal import DiagonalNormal

GATE_BIAS = 1.5  # "close to +1 or +2", so that each step starts near the identity (Kingma et al. 2016, section 4)


class AutoregressiveNetwork(Protocol):
    """A module z [..., B, d], context [B, n] -> m, s [..., B, d] whose entry i depends on the entries of z before i.

    `backwards` reverses the order: entry i then depends on the entries after i.
    """

    backwards: bool

    def __call__(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]: ...


class AutoregressiveFlow(LatentDistribution):
    """z = f_T(... f_1(z_0)), z_0 ~ base, f_t(e) = g * e + (1 - g) * m (Kingma et al. 2016, eq. 10-14).

    `log_prob` is differentiable once, not twice. The KL has no closed form; estimators that need one raise InputError.

    Arguments:
        base: distribution of z_0, batch shape [B].
        context: features of the image that every network is conditioned on, [B, n].
        networks: one per step, f_1 first.
    """

    exact_moments = False

    def __init__(self, base: DiagonalNormal, context: Tensor, networks: Sequence[AutoregressiveNetwork]) -> None:
        self.base, self.context, self.networks = base, context, tuple(networks)
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def transform(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        z, log_q = self.base.transform(noise)
        for network in self.networks:
            z, log_det = self._step(network, z)
            log_q = log_q - log_det
        return z, log_q

    def log_prob(self, z: Tensor) -> Tensor:
        """[..., B, d] -> [..., B] nats, by d passes through each network.

        NaN where a gate underflows in the inverse: only far from any sample, or with gates near e^-88 (float32).
        """
        total = torch.zeros_like(z[..., 0])
        for network in reversed(self.networks):
            z, log_det = self._inverse_step(network, z)
            total = total + log_det
        return self.base.log_prob(z) - total

    def _step(self, network: AutoregressiveNetwork, e: Tensor) -> tuple[Tensor, Tensor]:
        """f(e) [..., B, d] and log|df/de| [..., B]."""
        m, s = network(e, self.context)
        s = s + GATE_BIAS
        return torch.sigmoid(s) * e + torch.sigmoid(-s) * m, F.logsigmoid(s).sum(-1)

    def _inverse_step(self, network: AutoregressiveNetwork, z: Tensor) -> tuple[Tensor, Tensor]:
        """u with f(u) = z and log|df/de| at u, both with first derivatives in z, context and parameters."""
        with torch.no_grad():
            e = self._solve(network, z)
        f, log_det = self._step(network, e)
        if not torch.is_grad_enabled():
            return e, log_det
        with torch.no_grad():
            jacobian, slope = self._derivatives(network, e)
        residual = (z - f).unsqueeze(-1)  # zero in value, not in its derivatives
        shift = torch.linalg.solve_triangular(jacobian, residual, upper=network.backwards).squeeze(-1)
        return e + shift, log_det + (slope * shift).sum(-1)

    def _solve(self, network: AutoregressiveNetwork, z: Tensor) -> Tensor:
        """e with f(e) = z [..., B, d]; entry i depends on earlier entries only, so each pass solves one more."""
        e = torch.zeros_like(z)
        order = range(z.shape[-1])
        for i in reversed(order) if network.backwards else order:
            m, s = network(e, self.context)
            e[..., i] = m[..., i] + (z[..., i] - m[..., i]) / torch.sigmoid(s[..., i] + GATE_BIAS)
        return e

    def _derivatives(self, network: AutoregressiveNetwork, e: Tensor) -> tuple[Tensor, Tensor]:
        """df/de [..., B, d, d] and the gradient of log|df/de| [..., B, d], by forward mode over d unit tangents."""

        def push(tangent: Tensor) -> tuple[Tensor, Tensor]:
            return torch.func.jvp(lambda at: self._step(network, at), (e,), (tangent.expand_as(e),))[1]

        eye = torch.eye(e.shape[-1], dtype=e.dtype, device=e.device)
        columns, slope = torch.vmap(push)(eye)
        return columns.movedim(0, -1), slope.movedim(0, -1)

    def _detached_networks(self) -> list[AutoregressiveNetwork]:
        return [cast(AutoregressiveNetwork, detached_module(cast(nn.Module, n))) for n in self.networks]

    def detach(self) -> AutoregressiveFlow:
        return AutoregressiveFlow(self.base.detach(), self.context.detach(), self._detached_networks())

    def local_parameters(self) -> tuple[list[Tensor], Callable[[], AutoregressiveFlow]]:
        # The networks are shared by all images: only the base and the context are local.
        parameters, build_base = self.base.local_parameters()
        context, networks = as_leaf(self.context), self._detached_networks()
        return [*parameters, context], lambda: AutoregressiveFlow(build_base(), context, networks)

    def at_mode(self, mode: Tensor, cholesky: Tensor) -> AutoregressiveFlow:
        """The base's mean is the preimage of the mode; its scales, the context and the networks stay."""
        for network in reversed(self.networks):
            mode = self._inverse_step(network, mode)[0]
        return AutoregressiveFlow(DiagonalNormal(mode, self.base.log_variance), self.context, self.networks)

    def _like(self) -> Tensor:
        return self.base.mean
