"""Deprecated location of `vaerun.config.plugins`, to be removed in the next release.

Import `trust` from `vaerun`, and everything else from `vaerun.config.plugins`.
"""

from __future__ import annotations

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    from vaerun.config import plugins

    if name.startswith("__") or not hasattr(plugins, name):
        raise AttributeError(f"module 'vaerun.plugins' has no attribute '{name}'")
    new = "vaerun" if name == "trust" else "vaerun.config.plugins"
    warnings.warn(f"vaerun.plugins is deprecated: import {name} from {new}", category=DeprecationWarning, stacklevel=2)
    return getattr(plugins, name)
