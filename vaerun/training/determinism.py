"""trainer.deterministic=true: the same bits on a GPU too, or one line that says which operation cannot give them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vaerun.errors import InputError, RunError


def choose_algorithms(deterministic: bool) -> None:
    """Have torch refuse operations without a deterministic form, or not, in this whole process.

    cuBLAS is deterministic with this workspace only, and torch looks at the variable once, at a process's first product
    of matrices: which may be that of a run without the setting. The workspace is as large as torch's own for an H100.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


@contextmanager
def named_operations(kind: type[InputError] | type[RunError]) -> Iterator[None]:
    """Inside, an operation that torch refuses for having no deterministic form is an error of this kind in one line."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, RunError):
            raise
        if "CUBLAS_WORKSPACE_CONFIG" in str(error):
            raise kind(
                "trainer.deterministic=true needs the environment variable CUBLAS_WORKSPACE_CONFIG=:4096:8 (or :16:8), "
                f"and it was {os.environ.get('CUBLAS_WORKSPACE_CONFIG', 'not set')} at this process's first product"
            ) from error
        refused = re.match(r"(\S+) does not have a deterministic implementation", str(error))
        if refused is None:
            raise
        raise kind(
            f"trainer.deterministic=true: the operation {refused.group(1)} has no deterministic form on this device: "
            "choose parts without it, or leave trainer.deterministic out"
        ) from error
