"""Closed-form maximum-likelihood fit (probabilistic PCA)."""

from __future__ import annotations

import time
from collections.abc import Callable

from vaerun.data.dataset import Split
from vaerun.models import ppca
from vaerun.objectives import Variational
from vaerun.run.family import Validate
from vaerun.storage.checkpoint import CheckpointManager
from vaerun.tracking.logger import NullLogger, RunLogger
from vaerun.training import TrainState

BATCH = 4096  # images at a time; affects results only through rounding


def fit_closed_form(
    objective: Variational,
    split: Split,
    *,
    validate: Validate | None,
    logger: RunLogger | NullLogger,
    checkpoints: CheckpointManager,
    warn: Callable[[str], None],
) -> TrainState:
    """Set the parameters to their maximum-likelihood estimate on the split, validate, and save best.pt."""
    started, model = time.perf_counter(), objective.model
    ppca.fit_closed_form(model, (batch.x for batch in split.batches(BATCH)))
    if ppca.variance_at_minimum(model):
        warn(
            f"the training images span at most model.latent_dim={model.latent_dim} dimensions: their likelihood is "
            f"unbounded, and is reported at the variance {ppca.MINIMUM_VARIANCE:g}"
        )
    objective.train(False)
    seconds = time.perf_counter() - started
    metrics = {} if validate is None else validate()
    if metrics:
        logger.log_scalars(0, 0.0, metrics)
    selection = "" if validate is None else validate.selection or ""
    checkpoints.save_best({"objective": objective.state_dict(), "epoch": 0.0, "selection": selection})
    return TrainState(best=metrics.get(selection), finished=True, seconds=seconds)
