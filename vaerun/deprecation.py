"""Names of earlier versions, kept for one release with a DeprecationWarning."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that `old` is now called `new`; by default at the line that called the caller."""
    warnings.warn(f"{old} is deprecated: use {new}", DeprecationWarning, stacklevel)


def deprecated_alias(function: F, old: str, new: str) -> F:
    """The same function under its old name."""

    @functools.wraps(function)
    def alias(*args: Any, **kwargs: Any) -> Any:
        warn_renamed(old, new)
        return function(*args, **kwargs)

    return alias  # type: ignore[return-value]


def attribute_name(value: object, name: str, old_name: str) -> str:
    """The name of an attribute that a plug-in's object may still have under its old name."""
    if hasattr(value, name) or not hasattr(value, old_name):
        return name
    warn_renamed(f"{type(value).__name__}.{old_name}", name)
    return old_name


def module_aliases(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A `__getattr__` for a module that maps old names of its contents to new ones.

    Arguments:
        module: the module's `__name__`.
        names: new name by old name.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(f"{module}.{name}", f"{module}.{names[name]}")
        return getattr(sys.modules[module], names[name])

    return get
