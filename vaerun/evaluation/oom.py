"""Evaluation in batches that are halved and retried when memory runs out.

What is computed for an image does not depend on the others (randomness.ImageNoise), so a batch computed in two halves
gives the same numbers up to rounding. What cannot be split fails with one line (vaerun/memory.py).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from vaerun.errors import RunError
from vaerun.memory import is_out_of_memory
from vaerun.tracking.monitor import Monitor

T = TypeVar("T")


def adaptive_batches(
    count: int,
    batch_size: int,
    compute: Callable[[int, int, int], T],
    *,
    monitor: Monitor,
    task: str,
    setting: str,
    samples: int = 1,
) -> Iterator[T]:
    """Yield `compute(start, end, batch_size)` for consecutive batches of `count` images.

    Arguments:
        count: number of images.
        batch_size: work per call, in images times `samples`. It is halved whenever memory runs out, and never raised.
        compute: processes images start..end-1, at most `batch_size` at once.
        monitor: warned each time memory runs out.
        task: what is computed, for that warning.
        setting: the setting that a user can lower.
        samples: how many samples `compute` draws per image at once, if memory allows.

    Raises RunError if memory does not suffice even for a batch size of 1.
    """
    start = 0
    while start < count:
        end = min(start + max(1, batch_size // samples), count)
        try:
            result = compute(start, end, batch_size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            yield result
            start = end
            continue
        # Outside the except block: the traceback is gone, and with it the frames that keep the tensors alive.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if batch_size == 1:
            raise RunError(f"{task}: memory ran out at a batch size of 1: lower {setting}, or the size of the model")
        monitor.warn(
            f"{task}: memory ran out with {batch_size} at once, continuing with {batch_size // 2} (see {setting})"
        )
        batch_size //= 2


def map_batches(
    count: int,
    batch_size: int,
    compute: Callable[[int, int, int], dict[str, Tensor]],
    *,
    monitor: Monitor,
    task: str,
    setting: str,
    samples: int = 1,
) -> dict[str, Tensor]:
    """Concatenate the values per image, by name, of adaptive_batches: [N] on the CPU, floating-point ones as float64.

    The arguments are those of adaptive_batches; `monitor` is also advanced by the images of each batch.
    """
    parts = []
    for part in adaptive_batches(
        count, batch_size, compute, monitor=monitor, task=task, setting=setting, samples=samples
    ):
        parts.append({k: v.cpu().double() if v.is_floating_point() else v.cpu() for k, v in part.items()})
        monitor.advance(len(next(iter(part.values()))))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
