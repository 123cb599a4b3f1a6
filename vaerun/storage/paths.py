"""Expansion of user-supplied paths, and detection of links that leave a directory."""

from __future__ import annotations

import os
from pathlib import Path

from vaerun.errors import InputError


def expand_user(path: str | Path) -> Path:
    """Expand a leading ~ or ~USER. Raises InputError if there is no such home directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # HOME is not set, as in some containers, or there is no such user
        raise InputError(f"{path}: no such home directory: write the full path") from error


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path lies inside a directory once all links are resolved; False for circular links."""
    try:
        return Path(os.path.realpath(path, strict=False)).is_relative_to(os.path.realpath(folder))
    except (OSError, ValueError, RuntimeError):
        return False


def find_escaping_link(folder: Path) -> Path | None:
    """The first link below a directory that points outside it, or None. Writing through one could change any file."""
    for base, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            path = Path(base, name)
            if path.is_symlink() and not is_inside(path, folder):
                return path
    return None
