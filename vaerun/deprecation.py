"""Deprecated names, kept for one release with a DeprecationWarning; also silences a warning from torch."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that `old` is now called `new`. By default the warning points at the line that called the caller."""
    warnings.warn(f"{old} is deprecated: use {new}", DeprecationWarning, stacklevel)


def deprecated_alias(function: F, old: str, new: str) -> F:
    """Wrap a function so that it warns that its old name is deprecated."""

    @functools.wraps(function)
    def alias(*args: Any, **kwargs: Any) -> Any:
        warn_renamed(old, new)
        return function(*args, **kwargs)

    return alias  # type: ignore[return-value]


def attribute_name(value: object, name: str, old_name: str) -> str:
    """Return `name`, or `old_name` with a warning if the object, from an older plug-in, only has that attribute."""
    if hasattr(value, name) or not hasattr(value, old_name):
        return name
    warn_renamed(f"{type(value).__name__}.{old_name}", name)
    return old_name


def module_aliases(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module-level `__getattr__` that resolves deprecated names.

    Arguments:
        module: `__name__` of the module.
        names: mapping from old to new names.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(f"{module}.{name}", f"{module}.{names[name]}")
        return getattr(sys.modules[module], names[name])

    return get


class MovedModules(MetaPathFinder, Loader):
    """Import hook (see `sys.meta_path`) that finds modules under the names they had before they moved.

    Arguments:
        names: mapping from old to new module names.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in self.names else None

    def exec_module(self, module: ModuleType) -> None:
        new = self.names[module.__name__]
        warnings.warn(f"{module.__name__} has moved: import {new}", DeprecationWarning, stacklevel=2)
        module.__getattr__ = functools.partial(getattr, importlib.import_module(new))  # type: ignore[method-assign]


def silence_torch_warnings() -> None:
    """Silence torch's warning about its own use of torch.jit inside torch.func, which no user can act on."""
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*is deprecated")
