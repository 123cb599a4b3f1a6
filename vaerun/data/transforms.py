"""Transforms from stored pixels to model inputs: binarisation, dequantisation and logit, with log|det|.

Densities refer to pixels scaled to [0, 1]: log|det| is that of the map from there to x, so
log p(pixels) = log p(x) + log|det|. Without dequantisation x = pixel / 255; with it x = (pixel + u) / 256, u ~ U(0, 1)
(Theis et al. 2016); the logit map is x -> logit(alpha + (1 - 2 alpha) x) (Dinh et al. 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from vaerun.errors import InputError

ALPHA = 1e-6  # keeps the logit finite at 0 and 1


@dataclass(frozen=True)
class Transform:
    """The transform of every batch.

    Attributes:
        binarize: `none`; `dynamic`: P(1) = grey value, resampled for each training batch, but once for validation and
            test images; `fixed`: sampled once for all images.
        dequantize: add uniform noise within each of the 256 grey levels.
        logit: map [0, 1] to the real line; requires dequantize.
        dtype: that of every x, whatever torch's default; tests of identities set float64.
    """

    binarize: str = "none"
    dequantize: bool = False
    logit: bool = False
    dtype: ClassVar[torch.dtype] = torch.float32

    def __post_init__(self) -> None:
        if self.binarize not in ("none", "dynamic", "fixed"):
            raise InputError(f"data.binarize must be none, dynamic or fixed, got {self.binarize!r}")
        if self.dequantize and self.binarize != "none":
            raise InputError("data.dequantize=true is for pixels that are not binarised: set data.binarize=none")
        if self.logit and not self.dequantize:
            raise InputError(
                "data.logit=true needs data.dequantize=true (the logit of pixel values 0 and 255 is infinite)"
            )

    def __call__(self, pixels: Tensor, uniform: Callable[[], Tensor], binarised: bool) -> tuple[Tensor, Tensor]:
        """uint8 [B, C, H, W] -> x [B, C, H, W] of type `dtype` and log|det| [B] in nats.

        Arguments:
            pixels: as stored.
            uniform: returns U(0, 1) noise of the shape of pixels; called only if the transform is random.
            binarised: whether pixels are already binarised (stored as 0 and 255).
        """
        values = pixels.to(self.dtype)
        log_det = torch.zeros(len(pixels), dtype=self.dtype, device=pixels.device)
        if self.dequantize:
            x = (values + uniform()) / 256
            return self._logit(x) if self.logit else (x, log_det)
        x = values / 255
        if self.binarize != "none" and not binarised:
            x = (uniform() < x).to(x.dtype)
        return x, log_det

    @staticmethod
    def _logit(x: Tensor) -> tuple[Tensor, Tensor]:
        # d/dx logit(s(x)) = (1 - 2 alpha) / (s (1 - s)), and -log s - log(1 - s) = softplus(-y) + softplus(y)
        y = torch.logit(ALPHA + (1 - 2 * ALPHA) * x)
        log_det = math.log(1 - 2 * ALPHA) + F.softplus(y) + F.softplus(-y)
        return y, log_det.flatten(1).sum(1)

    def to_unit(self, x: Tensor) -> Tensor:
        """Map x of any shape back to [0, 1], for plots."""
        if self.logit:
            x = (torch.sigmoid(x) - ALPHA) / (1 - 2 * ALPHA)
        return x.clamp(0, 1)

    def moments(self, mean: Tensor, variance: float) -> tuple[Tensor, float]:
        """Mean of x for each pixel and its variance averaged over pixels, from those of pixel / 255.

        Not for the logit, for which they have no closed form.
        """
        if self.dequantize:
            return (255 * mean + 0.5) / 256, variance * (255 / 256) ** 2 + 1 / (12 * 256**2)
        if self.binarize == "dynamic":
            return mean, float((mean * (1 - mean)).mean())
        return mean, variance
