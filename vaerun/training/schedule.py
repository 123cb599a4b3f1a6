"""Learning-rate schedules as pure functions of position, so that they have no state to save."""

from __future__ import annotations

import math

from vaerun.errors import InputError

SCHEDULES = ("constant", "cosine", "step", "burda")


def lr_multiplier(schedule: str, epoch: int, progress: float) -> float:
    """What the learning rate is multiplied by.

    constant: 1. cosine: from 1 to 0 over the run. step: 1, then 0.1 after half and 0.01 after three quarters of the
    run. burda: 10^(-i/7) for 3^i epochs, i = 0..7 (Burda et al. 2016, section 5; 3280 epochs in all).

    Arguments:
        epoch: from 0.
        progress: part of the run's steps that is done, in [0, 1].

    Raises InputError for an unknown schedule.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "step":
        return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01
    if schedule == "burda":
        i, passed = 0, 1
        while epoch >= passed and i < 7:
            i += 1
            passed += 3**i
        return 10 ** (-i / 7)
    raise InputError(f"unknown trainer.schedule '{schedule}': choose one of {', '.join(SCHEDULES)}")
