"""Run directories to tables; reads files only (layer L6)."""

from vaerun.report.everything import write_all

__all__ = ["write_all"]
