"""How much a model may take while it is built and tried: a stranger's few words can ask for terabytes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class MemoryLimitExceeded(Exception):
    """More was asked for than there is room for."""


class AllocationLimit(TorchDispatchMode):
    """Within this, tensors made from a size alone (as parameters are) may take so many bytes in all.

    Raises TooLarge before the one that would be too many is made.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.remaining = room

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        size = args[0] if args else kwargs.get("size")
        if isinstance(size, list | tuple) and all(isinstance(n, int) for n in size):
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            self.remaining -= math.prod(size) * dtype.itemsize
            if self.remaining < 0:
                raise MemoryLimitExceeded(f"a tensor of size {list(size)[:6]}")
        return func(*args, **kwargs)


class ComputationLimit(TorchDispatchMode):
    """Within this, no tensor that is computed may take more than so many bytes; views take none.

    What an operation will give is asked of torch's `meta` device, which has shapes and no numbers. Raises TooLarge
    before the tensor that would be too large is made.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.max_bytes = most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if all(value.alias_info is None for value in func._schema.returns):
            self._check_outputs(func, args, kwargs)
        return func(*args, **kwargs)

    def _check_outputs(self, func: Any, args: Any, kwargs: Any) -> None:
        def shape_of(value: Any) -> Any:
            return value.to("meta") if isinstance(value, Tensor) else value

        try:
            given = tree_map(shape_of, kwargs)
            found = func(*tree_map(shape_of, args), **given | ({"device": "meta"} if "device" in given else {}))
        except Exception:  # it has no such form, or does not work: then it says so itself
            return
        for value in tree_leaves(found):
            if isinstance(value, Tensor) and value.numel() * value.itemsize > self.max_bytes:
                raise MemoryLimitExceeded(f"a tensor of size {list(value.shape)[:6]}")
