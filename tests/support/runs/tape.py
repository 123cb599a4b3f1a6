"""A recording of operations on the CPU with a CUDA graph's semantics: fixed addresses, no look at numbers.

`record` makes the function once and notes every operation; `replay` makes them again on the same memory: each writes
its result where the first one was. So whatever Python computed from a number, or kept outside of tensors, is baked in,
as it is in a CUDA graph. Unlike there, recording makes the function too; what it changed is put back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

LOOKS = ("aten::_local_scalar_dense", "aten::item", "aten::equal", "aten::nonzero", "aten::is_nonzero")


class _Noting(TorchDispatchMode):
    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.name() in LOOKS or func.name().startswith("aten::nonzero"):
            raise RuntimeError(f"operation not permitted when a step is recorded: {func.name()}")
        if func.name() == "aten::_to_copy" and kwargs.get("device") not in (None, torch.device("cpu")):
            raise RuntimeError("another device")
        for tensor in [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]:
            self.tape.keep(tensor)
        found = func(*args, **kwargs)
        self.tape.operations.append((func, args, kwargs, found))
        return found


class Tape:
    """Implements vaerun.training.cuda_graph.Recording."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.made: set[int] = set()
        self.replays = 0

    def keep(self, tensor: Tensor) -> None:
        """Memory that was there before the recording, as it was."""
        place = tensor.untyped_storage().data_ptr()
        if place not in self.before and place not in self.made:
            flat = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            self.before[place] = flat, flat.clone()

    def record(self, function: Callable[[], None]) -> None:
        with _Noting(self):
            function()
        for _, args, kwargs, found in self.operations:
            inputs = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            outputs = {t.untyped_storage().data_ptr() for t in tree_leaves(found) if isinstance(t, Tensor)}
            self.made |= outputs - inputs
        for flat, old in self.before.values():
            if flat.untyped_storage().data_ptr() not in self.made:
                flat.copy_(old)

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, found in self.operations:
                given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
                again = func(*args, **kwargs)
                for old, new in zip(tree_flatten(found)[0], tree_flatten(again)[0], strict=True):
                    if isinstance(old, Tensor) and old.untyped_storage().data_ptr() not in given:
                        old.copy_(new)
