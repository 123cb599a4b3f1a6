"""The defaults of torch and numpy under which runs compute, whatever a user or a plug-in has set.

Functions that draw name the type and device of what they draw. Networks do not, so that a default of float64 gives a
network in float64, as everywhere in torch: where a run builds them, it does so under `own_defaults`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def own_defaults() -> Iterator[None]:
    """Float32 on the CPU, gradients on, numpy's usual reports of overflow; the user's defaults are back afterwards.

    Also usable as a decorator. The default type belongs to the process: threads that compute at the same time need a
    common context around them.
    """
    import numpy as np
    import torch

    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":  # the context would slow down every operation
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
