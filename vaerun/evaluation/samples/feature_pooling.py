"""Features of a discriminator for a linear classifier (Radford et al. 2016, section 5.1).

The convolutional features of all layers, each layer's map max-pooled to a grid of 4 x 4, flattened and concatenated.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, cat
from torch.nn.functional import adaptive_max_pool2d

from vaerun.errors import InputError

GRID_SIDE = 4


def pooled_features(maps: Sequence[Tensor]) -> Tensor:
    """The features [N, F] of N images from all layers, in the layers' order; within a map channels first.

    Arguments:
        maps: each [N, C, h, w] or, of a dense layer, [N, f], which is taken as it is. Where h or w is at most 4 it
            stays; else cell i of 4 is the largest from floor(i h / 4) up to, not including, ceil((i + 1) h / 4): cells
            share pixels unless 4 divides h.

    Raises InputError where there are no maps or one of another shape.
    """
    if not len(maps):
        raise InputError("pooled features need at least one layer of the discriminator, and there are none")
    for layer, features in enumerate(maps):
        if features.dim() not in (2, 4) or len(features) != len(maps[0]):
            wanted = f"[{len(maps[0])}, C, h, w] or [{len(maps[0])}, f]"
            raise InputError(f"pooled features: layer {layer} gives {list(features.shape)}, it must give {wanted}")
    return cat([_pooled(features) if features.dim() == 4 else features for features in maps], 1)


def _pooled(features: Tensor) -> Tensor:
    h, w = features.shape[-2:]
    return adaptive_max_pool2d(features, (min(h, GRID_SIDE), min(w, GRID_SIDE))).flatten(1)
