"""trainer.deterministic=true: bitwise reproducible results on a GPU, or an error that names the offending operation."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vaerun.errors import InputError, RunError


def set_deterministic(deterministic: bool) -> None:
    """Allow or forbid nondeterministic operations in this process.

    cuBLAS is only deterministic with a fixed workspace, and torch reads the variable once, at the first matrix product
    of the process. As this may belong to a run without the setting, the variable is always set. The size is torch's
    default on an H100.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


@contextmanager
def reporting_nondeterminism(error_type: type[InputError] | type[RunError]) -> Iterator[None]:
    """Turn torch's error about a nondeterministic operation into one of this type that names the operation."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, RunError):
            raise
        if "CUBLAS_WORKSPACE_CONFIG" in str(error):
            raise error_type(
                "trainer.deterministic=true needs the environment variable CUBLAS_WORKSPACE_CONFIG=:4096:8 (or :16:8), "
                f"and it was {os.environ.get('CUBLAS_WORKSPACE_CONFIG', 'not set')} at this process's first matrix "
                "product"
            ) from error
        operation = re.match(r"(\S+) does not have a deterministic implementation", str(error))
        if operation is None:
            raise
        raise error_type(
            f"trainer.deterministic=true: the operation {operation.group(1)} has no deterministic implementation on "
            "this device: choose modules without it, or set trainer.deterministic=false"
        ) from error
