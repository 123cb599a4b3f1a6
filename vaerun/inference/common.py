"""Checks shared by the inference modules."""

from __future__ import annotations

from vaerun.errors import InputError

MAXIMUM_STEPS = 10_000  # each step is a layer in some models, a pass through the decoder in others


def check_steps(steps: int) -> int:
    """Return T; raises InputError unless it is an integer from 0 to MAXIMUM_STEPS."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise InputError(f"model.inference.steps must be an integer of at least 0, got {steps}")
    if steps > MAXIMUM_STEPS:
        raise InputError(f"model.inference.steps must be at most {MAXIMUM_STEPS}, got {steps}")
    return steps
