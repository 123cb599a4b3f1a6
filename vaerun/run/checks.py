"""What can be evaluated of a model on a data set, looked at before any work."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vaerun.data.dataset import ImageData
from vaerun.errors import InputError
from vaerun.estimators import estimate
from vaerun.evaluation.annealed import Annealing
from vaerun.evaluation.gaps import Refinement
from vaerun.evaluation.inception import check_inception
from vaerun.evaluation.traversals import parse_expression, parse_sets, parse_stops
from vaerun.models import AdversarialModel, LatentModel
from vaerun.run.build import named_estimators
from vaerun.settings import EvaluationSettings, Settings

DENSITY_ONLY = ("ais", "bdmc", "gaps", "gradient_noise")
POSTERIOR_ONLY = ("gaps", "gradient_noise")
SAMPLES_ONLY = ("quality", "inception_weights", "interpolation", "arithmetic")


def check_evaluation(whole: Settings, model: LatentModel, data: ImageData) -> None:
    """Raises InputError, before any work, for what cannot be evaluated of this model on this data."""
    settings = whole.evaluation
    for name in (*DENSITY_ONLY, *SAMPLES_ONLY):
        if getattr(settings, name) and not model.has_density:
            raise InputError(
                f"evaluation.{name} needs a likelihood, and a plain autoencoder (model=ae) has none: leave it out"
            )
    for name in ("parzen", "selection"):
        if getattr(settings, name):
            raise InputError(f"evaluation.{name} is for adversarial models, and this is none: leave it out")
    if settings.probe and not data.classes:
        raise InputError(f"evaluation.probe=true needs labels, and data set {data.name} has none")
    if settings.probe and model.classes:
        raise InputError(
            "evaluation.probe=true: a linear probe of a conditional model says nothing: its encoder is given the label"
        )
    if settings.probe and settings.split == "train":
        raise InputError("evaluation.probe=true fits to the training split: evaluate test or validation")
    _check_shared(settings, model, data)
    refinement_of(settings)
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


def check_adversarial(whole: Settings, model: AdversarialModel, data: ImageData) -> None:
    """The same for an adversarial model."""
    settings = whole.evaluation
    for name in POSTERIOR_ONLY:
        if getattr(settings, name):
            raise InputError(
                f"evaluation.{name}=true needs a posterior q(z|x), and an adversarial model has none: leave it out"
            )
    if settings.probe and not data.classes:
        raise InputError(f"evaluation.probe=true needs labels, and data set {data.name} has none")
    if settings.probe and model.classes:
        raise InputError(
            "evaluation.probe=true: a linear probe of a conditional model says nothing: its discriminator is given the "
            "label"
        )
    chooses = (settings.ais or settings.bdmc) and model.variance is None
    for name, needed in (("parzen", settings.parzen), ("ais and evaluation.bdmc", chooses)):
        if needed and not len(data.validation):
            raise InputError(
                f"evaluation.{name} chooses a variance on validation images, and data.validation=0: set data.validation"
                + ("" if name == "parzen" else " or model.fixed_variance")
            )
    if settings.selection is not None and not (data.classes >= 2 and len(data.validation)):
        raise InputError(
            f"evaluation.selection={settings.selection} needs labels and validation images: {data.name} lacks some"
        )
    if whole.trainer.early_stopping is not None and settings.selection is None:
        raise InputError(
            "trainer.early_stopping needs a metric: set evaluation.selection=classifier_frechet_distance, or "
            "trainer.early_stopping=null"
        )
    _check_shared(settings, model, data)


def _check_shared(settings: EvaluationSettings, model: LatentModel | AdversarialModel, data: ImageData) -> None:
    if settings.probe and settings.split == "train":
        raise InputError("evaluation.probe=true fits to the training split: evaluate test or validation")
    if settings.probe and data.train.labels is not None and len(data.train.labels.unique()) < 2:
        raise InputError(f"evaluation.probe=true needs two classes or more, and {data.name} has one")
    images = len(getattr(data, settings.split))
    if not images:
        raise InputError(f"evaluation.split={settings.split}: data set {data.name} has no such images")
    annealing_of(settings)
    count = min(settings.generated.samples, settings.images or images, images)
    if settings.quality and data.classes >= 2 and count <= settings.generated.neighbours:
        raise InputError(
            f"evaluation.generated.neighbours={settings.generated.neighbours} needs more images than that, and {count} "
            "are compared: lower it, or raise evaluation.images and evaluation.generated.samples"
        )
    if settings.inception_weights is not None:
        if count < 2:
            raise InputError("evaluation.inception_weights: a Frechet distance needs two images or more")
        check_inception(Path(settings.inception_weights).expanduser())
    sets = parse_sets(settings.sets)
    if settings.interpolation:
        parse_stops(settings.interpolation, sets)
    for expression in settings.arithmetic:
        parse_expression(expression, sets)
    if model.classes and (settings.interpolation or settings.arithmetic) and settings.label >= model.classes:
        raise InputError(f"evaluation.label={settings.label}: the model has classes 0 to {model.classes - 1}")


def _options(settings: Any) -> dict[str, Any]:
    return {k: v for k, v in asdict(settings).items() if k != "images"}


def annealing_of(settings: EvaluationSettings) -> Annealing:
    """`evaluation.annealing` as its function takes it."""
    return Annealing(**_options(settings.annealing))


def refinement_of(settings: EvaluationSettings) -> Refinement:
    """`evaluation.gap` as its function takes it."""
    return Refinement(**_options(settings.gap))
