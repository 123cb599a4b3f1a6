"""Tracks the folder of a run or sweep, so that it can be removed if the run is rejected."""

from __future__ import annotations

from pathlib import Path


class OutputDir:
    """The folder that Hydra creates for a run or sweep, with all its parents.

    Attributes:
        path: the folder and its parents; empty before the configuration is composed.
        missing: those of them that did not exist before.
    """

    def __init__(self) -> None:
        self.path: set[Path] = set()
        self.missing: set[Path] = set()

    def expect(self, folder: Path) -> None:
        """Record the folder that Hydra is about to create."""
        self.path |= {folder, *folder.parents}
        self.missing |= {path for path in (folder, *folder.parents) if not _exists(path)}

    def remove_empty(self) -> None:
        """Remove the folders that Hydra created and that are still empty: a rejected run leaves no trace."""
        for folder in sorted(self.missing, key=lambda path: len(path.parts), reverse=True):
            try:
                folder.rmdir()
            except OSError:  # not empty, or missing
                continue


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # the name is too long for the file system: reported when the folder is created
        return False
