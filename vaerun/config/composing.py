"""Errors that Hydra raises while it composes the configuration, told apart from those of the code that it calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vaerun.errors import InputError, RunError


class CompositionError(Exception):
    """Hydra cannot compose the configuration.

    Attributes:
        error: what Hydra raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def composing() -> Iterator[None]:
    """Around calls of Hydra: its errors, of whatever type, are raised as CompositionError."""
    try:
        yield
    except (InputError, RunError, CompositionError):
        raise
    except Exception as error:
        raise CompositionError(error) from error
