"""Memory that runs out: what counts as that, and the guard that reports it in one line.

The guard stands around every command and every run, and catches whatever comes, from wherever memory was short. Guards
further in say more precisely what was being done and what to lower; the innermost one has the word.
"""

from __future__ import annotations

import errno
import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from vaerun.errors import InputError, RunError

_TEXTS = (
    "can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "failed to allocate",
    "bad_alloc", "alloc_failed", "storage size calculation overflowed", "failed to map segment",
    "can't start new thread",
)  # fmt: skip
"""Parts of messages, in lower case: torch's allocators, C++, the dynamic linker and threads have no type of their own.
"""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on the device or on the host, also for a thread or a process.

    It need not be the error itself: others follow from it, such as that of an archive which could not be completed, or
    a line that takes what could not be read for damaged. The guard's own errors do not count: they are reports.
    """
    return any(_says_so(link) for link in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and the ones that led to it, up to one that the guard has reported."""
    seen = set[int]()
    link: BaseException | None = error
    while link is not None and id(link) not in seen and not getattr(link, "out_of_memory", False):
        yield link
        seen.add(id(link))
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _says_so(error: BaseException) -> bool:
    if isinstance(error, InputError | RunError):  # quotes users and files; what it follows from is looked at instead
        return False
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, Exception) and any(text in str(error).lower() for text in _TEXTS)


@contextmanager
def reporting_out_of_memory(error_type: type[InputError] | type[RunError], message: str) -> Iterator[None]:
    """Turn an error inside that says that memory ran out into `error_type(message)`; others pass unchanged.

    What the functions held that were left by the error is released, so that there is room to record it.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        for link in _chain(error):
            traceback.clear_frames(link.__traceback__)
        gc.collect()
        report = error_type(message)
        report.out_of_memory = True
        raise report from error
