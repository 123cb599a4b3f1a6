"""TensorBoard's HParams tab."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LARGEST_INTEGER = 2**53  # TensorBoard stores numbers as float64


def hparams_summaries(settings: Mapping[str, Any]) -> list[Any]:
    """Create the HParams summaries of a run.

    They declare no columns. TensorBoard then takes the union over the runs that it shows, with the settings that differ
    first; declared ones it would take from one of the runs, which need not have the settings or metrics of the others.

    Arguments:
        settings: value of each setting; lists become text. None: not applicable to this run.
    """
    from torch.utils.tensorboard.summary import hparams

    known = {name: _plain(value) for name, value in settings.items() if value is not None}
    _, start, end = hparams(known, {})
    return [start, end]


def _plain(value: Any) -> bool | int | float | str:
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        return str(value)
    return value if isinstance(value, bool | int | float | str) else str(value)
