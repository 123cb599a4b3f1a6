"""How much a model may take while it is built: a stranger's few words of configuration can ask for terabytes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class TooLarge(Exception):
    """More was asked for than there is room for."""


class Allocations(TorchDispatchMode):
    """Within this, tensors made from a size alone (as parameters are) may take so many bytes in all.

    Raises TooLarge before the one that would be too many is made.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        size = args[0] if args else kwargs.get("size")
        if isinstance(size, list | tuple) and all(isinstance(n, int) for n in size):
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            self.room -= math.prod(size) * dtype.itemsize
            if self.room < 0:
                raise TooLarge(f"a tensor of size {list(size)[:6]}")
        return func(*args, **kwargs)
