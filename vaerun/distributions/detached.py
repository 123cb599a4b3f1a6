"""Stop-gradient for modules."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def detached_module(module: M) -> M:
    """A view of the module with detached parameters: gradients flow through it, not into them.

    It shares the parameters' memory and is meant for immediate use.
    """
    view = module.__class__.__new__(module.__class__)  # copy.copy does not support parametrised modules
    view.__dict__.update(module.__dict__)
    state = view.__dict__
    state["_parameters"] = {name: None if p is None else p.detach() for name, p in module._parameters.items()}
    state["_modules"] = {name: None if m is None else detached_module(m) for name, m in module._modules.items()}
    return view
