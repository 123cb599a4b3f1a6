"""Text for a reader that may leave early, such as `head`."""

from __future__ import annotations

import os
import sys


def show(text: str) -> None:
    """Print to standard output; a reader that has closed it has seen enough."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes once more when it ends, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
