"""Work on many images in parts, which are made smaller where memory runs out.

What is computed for an image does not depend on the others (randomness.ImageNoise), so a part that is done again in
two halves gives the same numbers up to the rounding of sums over other shapes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from vaerun.errors import InputError, RunError
from vaerun.tracking.monitor import Monitor

T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out, the device's or the machine's."""
    # torch has a type of its own for devices only; on the CPU it is a RuntimeError of the allocator's, or of
    # what counts the bytes for it.
    texts = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    )


@contextmanager
def oom_raises(error_type: type[InputError] | type[RunError], message: str) -> Iterator[None]:
    """Memory that runs out inside is an error of this kind with this one line; other errors stay as they are."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise error_type(message) from error


def evaluation_oom_raises() -> AbstractContextManager[None]:
    """What is evaluated inside cannot always be halved. Raises RunError where memory runs out."""
    what = "lower evaluation.images, or leave out what was added to the evaluation"
    return oom_raises(RunError, f"memory ran out in evaluation, at what cannot be done in smaller parts: {what}")


def adaptive_batches(
    count: int,
    at_once: int,
    work: Callable[[int, int, int], T],
    *,
    monitor: Monitor,
    what: str,
    setting: str,
    samples: int = 1,
) -> Iterator[T]:
    """What `work(start, stop, at_once)` gives for parts of 0..count in order.

    Arguments:
        count: images.
        at_once: how much is computed at once to begin with, in images times `samples`; halved each time that memory
            runs out, and not raised again.
        work: computes images start..stop-1, with at most so much at once.
        monitor: warned each time that memory runs out.
        what: is computed, for that line.
        setting: that the user can lower.
        samples: that an image's work computes at once where it can.

    Raises RunError where memory runs out for the least that there is.
    """
    start = 0
    while start < count:
        stop = min(start + max(1, at_once // samples), count)
        try:
            found = work(start, stop, at_once)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            yield found
            start = stop
            continue
        # Here, where the error is gone and with it the frames that hold what was computed.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if at_once == 1:
            raise RunError(f"{what}: memory ran out for a single one at once: lower {setting}, or the model's size")
        monitor.warn(f"{what}: memory ran out with {at_once} at once, going on with {at_once // 2} (see {setting})")
        at_once //= 2


def map_batches(
    count: int,
    at_once: int,
    work: Callable[[int, int, int], dict[str, Tensor]],
    *,
    monitor: Monitor,
    what: str,
    setting: str,
    samples: int = 1,
) -> dict[str, Tensor]:
    """Values per image [N] by name, on the CPU (floating ones float64), of the parts of adaptive_batches.

    Arguments:
        monitor: of adaptive_batches; it is told of the images done, too.
        others: see adaptive_batches.
    """
    parts = []
    for part in adaptive_batches(count, at_once, work, monitor=monitor, what=what, setting=setting, samples=samples):
        parts.append({k: v.cpu().double() if v.is_floating_point() else v.cpu() for k, v in part.items()})
        monitor.advance(len(next(iter(part.values()))))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
