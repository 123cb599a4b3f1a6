"""Discriminator features for a linear classifier (Radford et al. 2016, section 5.1).

The feature maps of all convolutional layers are max-pooled to a 4 x 4 grid, flattened and concatenated.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, cat
from torch.nn.functional import adaptive_max_pool2d

from vaerun.errors import InputError

GRID_SIDE = 4


def pooled_features(maps: Sequence[Tensor]) -> Tensor:
    """Features [N, F] of N images from all layers in order, channels first within a map.

    Arguments:
        maps: [N, C, h, w] each, or [N, f] for a dense layer, which is used as it is. A side h of at most 4 is kept;
            otherwise cell i of 4 is the maximum over floor(i h / 4) <= y < ceil((i + 1) h / 4), so that cells overlap
            unless 4 divides h.

    Raises InputError if there are no maps, or for a map of any other shape.
    """
    if not len(maps):
        raise InputError("pooled features need at least one layer of the discriminator, got none")
    for layer, features in enumerate(maps):
        if features.dim() not in (2, 4) or len(features) != len(maps[0]):
            shapes = f"[{len(maps[0])}, C, h, w] or [{len(maps[0])}, f]"
            raise InputError(f"pooled features: layer {layer} must have shape {shapes}, got {list(features.shape)}")
    return cat([_pooled(features) if features.dim() == 4 else features for features in maps], 1)


def _pooled(features: Tensor) -> Tensor:
    h, w = features.shape[-2:]
    return adaptive_max_pool2d(features, (min(h, GRID_SIDE), min(w, GRID_SIDE))).flatten(1)
