"""The precision of a test: float64 for identities, float32 as in a run."""

import torch

from vaerun.data.transforms import Transform


def set_precision(dtype: torch.dtype) -> None:
    """The type of new parameters, and of the images that they meet."""
    torch.set_default_dtype(dtype)
    Transform.dtype = dtype
