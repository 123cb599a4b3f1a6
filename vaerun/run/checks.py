"""What can be evaluated of a model on a data set, looked at before any work."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from vaerun.data.dataset import ImageData
from vaerun.errors import InputError
from vaerun.estimators import estimate
from vaerun.evaluation.annealed import Annealing
from vaerun.evaluation.gaps import Refinement
from vaerun.models import LatentModel
from vaerun.run.build import named_estimators
from vaerun.settings import EvaluationSettings

DENSITY_ONLY = ("ais", "bdmc", "gaps", "gradient_noise")


def check_evaluation(settings: EvaluationSettings, model: LatentModel, data: ImageData) -> None:
    """Raises InputError, before any work, for what cannot be evaluated of this model on this data."""
    for name in DENSITY_ONLY:
        if getattr(settings, name) and not model.has_density:
            raise InputError(
                f"evaluation.{name}=true needs a likelihood, and a plain autoencoder (model=ae) has none: leave it out"
            )
    if settings.probe and not data.classes:
        raise InputError(f"evaluation.probe=true needs labels, and data set {data.name} has none")
    if settings.probe and model.classes:
        raise InputError(
            "evaluation.probe=true: a linear probe of a conditional model says nothing: its encoder is given the label"
        )
    if settings.probe and settings.split == "train":
        raise InputError("evaluation.probe=true fits to the training split: evaluate test or validation")
    if settings.probe and data.train.labels is not None and len(data.train.labels.unique()) < 2:
        raise InputError(f"evaluation.probe=true needs two classes or more, and {data.name} has one")
    if not len(getattr(data, settings.split)):
        raise InputError(f"evaluation.split={settings.split}: data set {data.name} has no such images")
    annealing_of(settings), refinement_of(settings)
    if settings.noise.estimators or settings.gradient_noise:
        chosen = named_estimators(settings.noise.estimators)
    if settings.gradient_noise:
        batch = data.train.batch(0, min(2, len(data.train)))
        joint = model.joint(batch.x, batch.c if model.classes else None)
        for name, estimator in chosen.items():
            try:
                with torch.no_grad(), torch.random.fork_rng(devices=[]):
                    estimate(estimator, model.infer, joint, settings.noise.samples)
            except InputError as refusal:
                raise InputError(f"evaluation.noise.estimators: {name}: {refusal}") from refusal


def _options(settings: Any) -> dict[str, Any]:
    return {k: v for k, v in asdict(settings).items() if k != "images"}


def annealing_of(settings: EvaluationSettings) -> Annealing:
    """`evaluation.annealing` as its function takes it."""
    return Annealing(**_options(settings.annealing))


def refinement_of(settings: EvaluationSettings) -> Refinement:
    """`evaluation.gap` as its function takes it."""
    return Refinement(**_options(settings.gap))
