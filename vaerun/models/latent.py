"""The latent-variable model, composed of decoder, likelihood, prior and inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from vaerun.distributions import NO_DENSITY, DiagonalNormal, LatentDistribution
from vaerun.errors import InputError
from vaerun.models.joint import Decoder, Joint, Likelihood, Noise
from vaerun.nets.init import linear


class LatentModel(nn.Module):
    """p(x | z, c) p(z | c) with any inference q(z | x, c) of vaerun.inference.

    Arguments:
        decoder: network z [..., B, d], c -> [..., B, C, H, W].
        likelihood: Gaussian or Bernoulli.
        inference: module that takes a Joint and returns a LatentDistribution.
        latent_dim: d.
        mean: the mean [C, H, W] of the training data: encoders see x - mean, and an untrained decoder outputs it.
        classes: number of label classes when conditional, else 0.
        conditional_prior: learn p(z | c) = N(m_c, diag v_c) instead of N(0, I).
    """

    def __init__(
        self,
        decoder: nn.Module,
        likelihood: nn.Module,
        inference: nn.Module,
        *,
        latent_dim: int,
        mean: Tensor,
        classes: int = 0,
        conditional_prior: bool = False,
    ) -> None:
        super().__init__()
        self.decoder, self.likelihood, self.inference = decoder, likelihood, inference
        self.latent_dim, self.classes = latent_dim, classes
        self.mean: Tensor
        self.offset: Tensor
        self.register_buffer("mean", mean.clone())
        self.register_buffer("offset", cast(Any, likelihood).output_offset(mean).clone())
        self.prior_head: nn.Linear | None = None
        if conditional_prior:
            self.prior_head = linear(classes, 2 * latent_dim)
            nn.init.zeros_(self.prior_head.weight)  # starts as N(0, I) for every class

    @property
    def has_density(self) -> bool:
        """Whether p(x) is defined; False for a plain autoencoder."""
        return getattr(self.inference, "has_density", True)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.mean.shape)

    def prior(self, c: Tensor | None) -> LatentDistribution | None:
        """p(z | c) with batch shape [B], or None for N(0, I)."""
        if self.prior_head is None or c is None:
            return None
        return DiagonalNormal(*self.prior_head(c.to(self.mean.dtype)).chunk(2, dim=-1))

    def joint(self, x: Tensor, c: Tensor | None = None, noise: Noise | None = None) -> Joint:
        """log p(x, z | c) as a function of z.

        Arguments:
            x: [B, C, H, W].
            c: [B, classes] one-hot; ignored by an unconditional model.
            noise: see Joint.

        Raises InputError if the model is conditional and c is None.
        """
        if self.classes and c is None:
            raise InputError(f"the model is conditional: pass c, one-hot labels [B, {self.classes}], such as batch.c")
        c = c if self.classes else None
        return Joint(
            cast(Decoder, self.decoder),
            cast(Likelihood, self.likelihood),
            self.prior(c),
            x,
            c,
            latent_dim=self.latent_dim,
            offset=self.offset,
            inputs=x - self.mean,
            noise=noise,
        )

    def infer(self, joint: Joint) -> LatentDistribution:
        """q(z | x, c), batch shape [B]."""
        return self.inference(joint)

    def decode_mean(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """E[x | z, c]: [..., B, d] -> [..., B, C, H, W], in the units of the (transformed) data."""
        return cast(Likelihood, self.likelihood).mean(self.decoder(z, c if self.classes else None) + self.offset)

    @property
    def noise_dim(self) -> int:
        """Dimension of the noise that `generate` takes: d."""
        return self.latent_dim

    def generate(self, noise: Tensor, c: Tensor | None = None) -> Tensor:
        """E[x | z, c] at z drawn from the prior by transforming the noise: [N, C, H, W].

        Arguments:
            noise: standard normal, [N, d].
            c: [N, classes] when conditional.

        Raises InputError for a plain autoencoder, which has no prior.
        """
        if not self.has_density:
            raise InputError(NO_DENSITY)
        prior = self.prior(c)
        return self.decode_mean(noise if prior is None else prior.transform(noise)[0], c)

    def sample(self, n: int, c: Tensor | None = None, noise: Callable[..., Tensor] = torch.randn) -> Tensor:
        """E[x | z, c] at n draws of z from the prior: [n, C, H, W]; c: [n, classes] when conditional.

        Raises InputError for a plain autoencoder, which has no prior.
        """
        return self.generate(noise(n, self.latent_dim, dtype=self.mean.dtype, device=self.mean.device), c)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by learning rate: `variance` (log s2) and `network` (all others)."""
        variance = [p for n, p in self.likelihood.named_parameters() if n == "log_variance" and p.requires_grad]
        variance_ids = {id(p) for p in variance}
        network = [p for p in self.parameters() if p.requires_grad and id(p) not in variance_ids]
        return {"network": network, "variance": variance}
