"""Separates errors raised by Hydra while composing the configuration from those of the code that it calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vaerun.errors import InputError, RunError


class CompositionError(Exception):
    """Hydra failed to compose the configuration.

    Attributes:
        error: exception raised by Hydra.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def composing() -> Iterator[None]:
    """Context for calls to Hydra: exceptions of any type are re-raised as CompositionError."""
    try:
        yield
    except (InputError, RunError, CompositionError):
        raise
    except Exception as error:
        raise CompositionError(error) from error
