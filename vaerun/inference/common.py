"""Checks that the inference modules share."""

from __future__ import annotations

from vaerun.errors import InputError


def check_steps(steps: int) -> int:
    """T as it is; raises InputError unless it is a whole number of at least 0."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise InputError(f"model.inference.steps must be a whole number of at least 0, got {steps}")
    return steps
