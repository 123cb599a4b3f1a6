"""Nested plain values: the dictionaries, lists, strings and numbers that JSON and YAML hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MAXIMUM_DEPTH = 50


def check_size(value: Any, maximum: int) -> None:
    """Raise ValueError for more than `maximum` values or for deep nesting, without traversing the whole structure."""
    stack, count = [(value, 0)], 0
    while stack:
        item, depth = stack.pop()
        count += 1
        if depth > MAXIMUM_DEPTH or count > maximum:
            raise ValueError("nested too deeply" if depth > MAXIMUM_DEPTH else "too many values")
        if isinstance(item, dict | list | tuple | set):
            stack += [(child, depth + 1) for child in (item.values() if isinstance(item, dict) else item)]


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of a nested mapping; lists are leaves."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def nonfinite_to_none(value: Any) -> Any:
    """Replace NaN and infinities, which JSON lacks, by None."""
    if isinstance(value, dict):
        return {k: nonfinite_to_none(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [nonfinite_to_none(v) for v in value]
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    return value
