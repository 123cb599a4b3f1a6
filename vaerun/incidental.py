"""Settings that cannot change a result: left out of a run's fingerprint and of comparisons between runs."""

from __future__ import annotations

from typing import Any

INCIDENTAL = frozenset(
    {
        "output_dir", "data.root", "trainer.device", "trainer.log_every", "trainer.checkpoint_seconds",
        "trainer.processes", "trainer.compile", "trainer.replicas", "evaluation.chunk", "evaluation.pictures",
    }
)  # fmt: skip

DATA_PATHS = ("data.path", "data.source.path")
"""Where the data are stored; data_sha256 identifies their content."""


def is_incidental(key: str, value: Any = None) -> bool:
    """Whether this setting cannot change a result; of `trainer.resume`, whether this value cannot."""
    return key in INCIDENTAL or key.startswith("sweep.") or (key == "trainer.resume" and value in ("auto", "never"))
