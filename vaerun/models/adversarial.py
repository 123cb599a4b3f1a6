"""The adversarial model: a generator and a discriminator, optionally conditional on a label or with codes.

All randomness is standard normal noise [N, n]: the latent vector z and, with codes, the noise they are made from.
Networks work on pixels scaled to [-1, 1]; the model's images are in [0, 1], the range of the data, where an observation
model N(x; G(z), s2 I) makes log p(x) finite (Wu et al. 2017).
"""

from __future__ import annotations

import copy
import math
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as with_spectral_norm

from vaerun.deprecation import attribute_name, deprecated_alias
from vaerun.errors import InputError
from vaerun.models.codes import Codes
from vaerun.models.joint import Joint, Noise
from vaerun.models.latent import LatentModel
from vaerun.models.likelihoods import Gaussian
from vaerun.nets.init import head

Q_HIDDEN = 128  # width of Q's hidden layer (Chen et al. 2016, appendix C)


class Discriminator(nn.Module):
    """A trunk with a head that classifies images as real or generated and, with codes, a second head Q.

    Arguments:
        trunk: x [B, C, H, W], c -> [B, features]; if its attribute `spectral_norm` is true, so is the head's.
        codes: the codes that Q predicts, or None.
    """

    def __init__(self, trunk: nn.Module, codes: Codes | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        features = int(cast(Any, trunk).features)
        self.head = head(features, 1)
        if getattr(trunk, "spectral_norm", False):
            with_spectral_norm(self.head)
        self.q = None
        if codes is not None:
            self.q = nn.Sequential(head(features, Q_HIDDEN), nn.LeakyReLU(0.2), head(Q_HIDDEN, codes.parameters))

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits [B] of real and Q's parameters [B, parameters] (None without codes), for x in [-1, 1]."""
        features = self.trunk(x, c)
        return self.head(features).squeeze(-1), None if self.q is None else self.q(features)


class AdversarialModel(nn.Module):
    """Generator G(z, code, label) and discriminator, as one model.

    Arguments:
        generator: network z [..., B, latent_dim + codes], c -> [..., B, C, H, W] in (-1, 1).
        trunk: the discriminator's network, x [B, C, H, W] in [-1, 1], c -> [B, features].
        latent_dim: dimension of z, codes not included.
        image_shape: (C, H, W).
        classes: number of label classes when conditional, else 0.
        codes: those of InfoGAN, or None.
        average: keep a moving average of the generator, and sample from and evaluate that.
        variance: s2 of the observation model; None: to be chosen on validation images.
    """

    has_density = False

    def __init__(
        self,
        generator: nn.Module,
        trunk: nn.Module,
        *,
        latent_dim: int,
        image_shape: tuple[int, ...],
        classes: int = 0,
        codes: Codes | None = None,
        average: bool = False,
        variance: float | None = None,
    ) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, Discriminator(trunk, codes)
        self.latent_dim, self.image_shape = latent_dim, tuple(image_shape)
        self.classes, self.codes, self.variance = classes, codes, variance
        self.average = copy.deepcopy(generator).requires_grad_(False).eval() if average else None
        self.zero: Tensor
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def train(self, mode: bool = True) -> Self:
        """Keeps the average in evaluation mode: its batch statistics are averages, too."""
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        return self

    @property
    def noise_dim(self) -> int:
        """n: the dimension of z plus that of the noise for the codes."""
        return self.latent_dim + (0 if self.codes is None else self.codes.noise_dim)

    def generator_inputs(self, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """Noise [..., n] -> inputs of the generator [..., latent_dim + codes], and the codes alone or None."""
        if self.codes is None:
            return noise, None
        z, code_noise = noise.split([self.latent_dim, self.codes.noise_dim], -1)
        code = self.codes.from_noise(code_noise)
        return torch.cat([z, code], -1), code

    @property
    def sampler(self) -> nn.Module:
        """The generator to sample from: the average if there is one."""
        return self.generator if self.average is None else self.average

    def generate(self, noise: Tensor, c: Tensor | None = None) -> Tensor:
        """Noise [..., B, n], c [B, classes] when conditional -> images [..., B, C, H, W] in [0, 1]."""
        return (self.sampler(self.generator_inputs(noise)[0], c if self.classes else None) + 1) / 2

    def generate_with_code(self, noise: Tensor, index: int, value: Tensor, c: Tensor | None = None) -> Tensor:
        """Like `generate`, for noise [N, n], with code `index` set to value [N] (see Codes.set_code)."""
        assert self.codes is not None
        z, code_noise = noise.split([self.latent_dim, self.codes.noise_dim], -1)
        code = self.codes.set_code(self.codes.from_noise(code_noise), index, value)
        return (self.sampler(torch.cat([z, code], -1), c if self.classes else None) + 1) / 2

    def sample(self, n: int, c: Tensor | None = None) -> Tensor:
        """n images [n, C, H, W] in [0, 1]; c: [n, classes] when conditional. Raises InputError if it is missing."""
        if self.classes and c is None:
            raise InputError(f"the model is conditional on {self.classes} classes: pass one-hot labels, sample(n, c)")
        return self.generate(torch.randn(n, self.noise_dim, dtype=self.zero.dtype, device=self.zero.device), c)

    def feature_maps(self, x: Tensor, c: Tensor | None = None) -> list[Tensor]:
        """Outputs of all layers of the discriminator for images x [B, C, H, W] in [0, 1]."""
        trunk = self.discriminator.trunk
        feature_maps = getattr(trunk, attribute_name(trunk, "feature_maps", "maps"))
        return feature_maps(2 * x - 1, c if self.classes else None)

    maps = deprecated_alias(feature_maps, "AdversarialModel.maps", "AdversarialModel.feature_maps")

    def observation_model(self, variance: float) -> LatentModel:
        """The same generator as a latent-variable model, p(x | z) = N(G(z), variance I) on pixels in [0, 1].

        It shares the generator's parameters and has no inference network. Raises InputError if the generator has batch
        normalisation in training mode, where an image depends on the rest of its batch.
        """
        if not 0 < variance < math.inf:
            raise InputError(f"the observation variance must be finite and above 0, got {variance}")
        if self.sampler.training and any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.sampler.modules()
        ):
            raise InputError("log p(x) needs a generator in evaluation mode: call model.eval() first")
        model = LatentModel(
            _PixelDecoder(self.sampler, self.latent_dim, self.codes),
            Gaussian(variance, learned=False),
            nn.Identity(),
            latent_dim=self.noise_dim,
            mean=self.zero.expand(self.image_shape),
            classes=self.classes,
        )
        return model.to(self.zero)

    observed = deprecated_alias(observation_model, "AdversarialModel.observed", "AdversarialModel.observation_model")

    def joint(
        self, x: Tensor, c: Tensor | None = None, variance: float | None = None, noise: Noise | None = None
    ) -> Joint:
        """log p(x, z | c) under the observation model, as a function of the noise.

        Arguments:
            x, c, noise: as in LatentModel.joint.
            variance: s2; None: the model's. Raises InputError if it has none.
        """
        variance = self.variance if variance is None else variance
        if variance is None:
            raise InputError(
                "log p(x) of an adversarial model needs a variance: call model.joint(x, c, variance); an evaluation "
                "with evaluation.ais=true reports the one it chose as observation_variance"
            )
        return self.observation_model(variance).joint(x, c, noise)


class _PixelDecoder(nn.Module):
    """The generator as a decoder: standard normal noise -> the mean of pixels in [0, 1]."""

    affine: nn.Linear | None = None

    def __init__(self, generator: nn.Module, latent_dim: int, codes: Codes | None) -> None:
        super().__init__()
        self.generator, self.latent_dim, self.codes = generator, latent_dim, codes

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        if self.codes is not None:
            z, code_noise = z.split([self.latent_dim, self.codes.noise_dim], -1)
            z = torch.cat([z, self.codes.from_noise(code_noise)], -1)
        return (self.generator(z, c) + 1) / 2
