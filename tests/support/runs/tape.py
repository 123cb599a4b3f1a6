"""A CPU stand-in for a CUDA graph, with its semantics: fixed addresses, no values read on the host.

`capture` runs the function once and logs every operation; `replay` repeats them on the same memory, each result going
where the first one went. Whatever Python computed from a value, or kept outside of tensors, is baked in, as in a CUDA
graph. Unlike there, capturing executes the function; what it changed is restored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

HOST_READS = ("aten::_local_scalar_dense", "aten::item", "aten::equal", "aten::nonzero", "aten::is_nonzero")


class _Capturing(TorchDispatchMode):
    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.name() in HOST_READS or func.name().startswith("aten::nonzero"):
            raise RuntimeError(f"operation not permitted during a capture: {func.name()}")
        if func.name() == "aten::_to_copy" and kwargs.get("device") not in (None, torch.device("cpu")):
            raise RuntimeError("another device")
        for tensor in [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]:
            self.tape.save(tensor)
        result = func(*args, **kwargs)
        self.tape.operations.append((func, args, kwargs, result))
        return result


class Tape:
    """Implements vaerun.training.cuda_graph.Graph."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.made: set[int] = set()
        self.replays = 0

    def save(self, tensor: Tensor) -> None:
        """Copy memory that existed before the capture."""
        address = tensor.untyped_storage().data_ptr()
        if address not in self.before and address not in self.made:
            flat = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            self.before[address] = flat, flat.clone()

    def capture(self, function: Callable[[], None]) -> None:
        with _Capturing(self):
            function()
        for _, args, kwargs, result in self.operations:
            inputs = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            outputs = {t.untyped_storage().data_ptr() for t in tree_leaves(result) if isinstance(t, Tensor)}
            self.made |= outputs - inputs
        for flat, old in self.before.values():
            if flat.untyped_storage().data_ptr() not in self.made:
                flat.copy_(old)

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, first in self.operations:
                inputs = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
                repeated = func(*args, **kwargs)
                for old, new in zip(tree_flatten(first)[0], tree_flatten(repeated)[0], strict=True):
                    if isinstance(old, Tensor) and old.untyped_storage().data_ptr() not in inputs:
                        old.copy_(new)
