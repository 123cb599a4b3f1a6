"""Memory limits for building and testing untrusted models: a short configuration can request terabytes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class MemoryLimitExceeded(Exception):
    """A tensor exceeds the memory limit; the message gives both."""


class AllocationLimit(TorchDispatchMode):
    """Limits the total bytes of tensors allocated by size, as parameters are, while active.

    Raises MemoryLimitExceeded before the allocation that exceeds `max_bytes`.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self.remaining = max_bytes

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
    """Limits the bytes of every computed tensor while active; views are free.

    The outputs of an operation are predicted on torch's `meta` device, which has shapes but no data. Raises
    MemoryLimitExceeded before a tensor that exceeds `max_bytes` is allocated.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self.max_bytes = max_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if all(value.alias_info is None for value in func._schema.returns):
            self._check_outputs(func, args, kwargs)
        return func(*args, **kwargs)

    def _check_outputs(self, func: Any, args: Any, kwargs: Any) -> None:
        def to_meta(value: Any) -> Any:
            return value.to("meta") if isinstance(value, Tensor) else value

        try:
            options = tree_map(to_meta, kwargs)
            outputs = func(*tree_map(to_meta, args), **options | ({"device": "meta"} if "device" in options else {}))
        except Exception:  # not implemented on `meta`, or invalid: the operation itself will raise
            return
        for value in tree_leaves(outputs):
            if isinstance(value, Tensor) and value.numel() * value.itemsize > self.max_bytes:
                raise MemoryLimitExceeded(f"a tensor of size {list(value.shape)[:6]}")
