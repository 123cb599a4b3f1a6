"""The folder of a run or a sweep: its name by default, and its removal where the run is refused."""

from __future__ import annotations

from pathlib import Path


class OutputDir:
    """The folder that Hydra makes for a run or a sweep, with all folders above it.

    Attributes:
        path: with its parents; empty before the configuration is composed.
        missing: those of them that did not exist before.
    """

    def __init__(self) -> None:
        self.path: set[Path] = set()
        self.missing: set[Path] = set()

    def expect(self, folder: Path) -> None:
        """Note the folder that Hydra is about to make."""
        self.path |= {folder, *folder.parents}
        self.missing |= {path for path in (folder, *folder.parents) if not _exists(path)}

    def remove_empty(self) -> None:
        """Remove what Hydra made and nothing was written into: a run that is refused leaves no trace."""
        for folder in sorted(self.missing, key=lambda path: len(path.parts), reverse=True):
            try:
                folder.rmdir()
            except OSError:  # not empty, or not there
                continue


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for the file system: making it will say so
        return False
