"""Settings that cannot affect results, and are ignored by fingerprints and by comparisons between runs."""

from __future__ import annotations

from typing import Any

INCIDENTAL = frozenset(
    {
        "output_dir", "data.root", "trainer.device", "trainer.log_every", "trainer.checkpoint_seconds",
        "trainer.processes", "trainer.compile", "trainer.replicas", "evaluation.chunk", "evaluation.pictures",
    }
)  # fmt: skip

DATA_PATHS = ("data.path", "data.source.path")
"""Locations of the data, whose content is identified by data_sha256."""


def is_incidental(key: str, value: Any = None) -> bool:
    """Whether a setting cannot affect results; for `trainer.resume`, this depends on the value."""
    return key in INCIDENTAL or key.startswith("sweep.") or (key == "trainer.resume" and value in ("auto", "never"))
