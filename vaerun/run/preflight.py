"""Checks, before any work, that the configured evaluation is possible and the device supports the training settings."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from typing import Any

import torch

from vaerun.config.schema import EvaluationSettings, Settings, TrainerSettings
from vaerun.data.dataset import ImageData, Split
from vaerun.errors import InputError
from vaerun.estimators import estimate
from vaerun.evaluation.adaptive.adaptation import Amis
from vaerun.evaluation.adaptive.amis import MAX_LATENT_DIM, check_amis
from vaerun.evaluation.latent.traversals import parse_expression, parse_sets, parse_waypoints
from vaerun.evaluation.likelihood.annealed import Annealing
from vaerun.evaluation.likelihood.estimates import Estimates, check_estimates
from vaerun.evaluation.likelihood.gaps import Refinement
from vaerun.evaluation.samples.inception import check_inception
from vaerun.evaluation.samples.sample_validation import DIVERSITY_IMAGES, real_images
from vaerun.memory import reporting_out_of_memory
from vaerun.models import AdversarialModel, LatentModel
from vaerun.run.build import estimators_by_name
from vaerun.run.evaluate.classifier import has_classifier
from vaerun.storage.paths import expand_user
from vaerun.training.precision import check_precision

DENSITY_ONLY = ("ais", "bdmc", "estimates", "gaps", "gradient_noise")
POSTERIOR_ONLY = ("gaps", "gradient_noise")
SAMPLES_ONLY = ("quality", "inception_weights", "interpolation", "arithmetic")


def check_evaluation(settings: EvaluationSettings, model: LatentModel, data: ImageData) -> None:
    """Raise InputError for an evaluation that is not possible for this model and data set."""
    for name in (*DENSITY_ONLY, *SAMPLES_ONLY):
        if getattr(settings, name) and not model.has_density:
            raise InputError(
                f"evaluation.{name} needs a likelihood, and a plain autoencoder (model=ae) has none: omit it"
            )
    for name in ("parzen", "selection"):
        if getattr(settings, name):
            raise InputError(f"evaluation.{name} is for adversarial models only: omit it")
    if uses_amis(settings, model):
        check_amis(model)
    if settings.probe and not data.classes:
        raise InputError(f"evaluation.probe=true needs labels, and {data.no_labels}: omit it")
    if settings.probe and model.classes:
        raise InputError(
            "evaluation.probe=true: a linear probe of a conditional model is meaningless: its encoder is given the "
            "label: omit it"
        )
    if settings.probe and settings.split == "train":
        raise InputError("evaluation.probe=true fits to the training split: evaluate test or validation")
    _check_shared(settings, model, data)
    make_refinement(settings)
    if settings.estimates:
        check_estimates(model)
    if settings.noise.estimators or settings.gradient_noise:
        estimators = estimators_by_name(settings.noise.estimators)
    if settings.gradient_noise:
        batch = data.train.batch(0, min(2, len(data.train)))
        joint = model.joint(batch.x, batch.c if model.classes else None)
        samples = settings.noise.samples
        message = f"evaluation.noise.samples={samples}: memory ran out for {len(batch.x)} images: lower it"
        for name, estimator in estimators.items():
            try:
                with (
                    reporting_out_of_memory(InputError, message),
                    torch.no_grad(),
                    torch.random.fork_rng(devices=[]),
                ):
                    estimate(estimator, model.infer, joint, samples)
            except InputError as error:
                raise InputError(f"evaluation.noise.estimators: {name}: {error}") from error


def check_adversarial(settings: EvaluationSettings, model: AdversarialModel, data: ImageData) -> None:
    """Raise InputError for an evaluation that is not possible for this adversarial model and data set."""
    for name in POSTERIOR_ONLY:
        if getattr(settings, name):
            raise InputError(
                f"evaluation.{name}=true needs a posterior q(z|x), but an adversarial model has none: omit it"
            )
    if settings.probe and not data.classes:
        raise InputError(f"evaluation.probe=true needs labels, and {data.no_labels}: omit it")
    if settings.probe and model.classes:
        raise InputError(
            "evaluation.probe=true: a linear probe of a conditional model is meaningless: its discriminator is given "
            "the label: omit it"
        )
    if uses_amis(settings, model):
        check_amis(model.observation_model(1.0))
    if settings.estimates:
        check_estimates(model.observation_model(1.0))
    choose_variance = uses_observation_model(settings, model) and model.variance is None
    for subject, required, keys in (
        ("parzen chooses", settings.parzen, "data.validation"),
        ("ais, bdmc, amis and estimates choose", choose_variance, "data.validation or model.fixed_variance"),
    ):
        if required and not len(data.validation):
            raise InputError(f"evaluation.{subject} a variance on validation images, and data.validation=0: set {keys}")
    variances = set(settings.observation.variances)
    if choose_variance and not (len(variances) >= 2 and all(0 < v < math.inf for v in variances)):
        raise InputError(
            "evaluation.observation.variances must list two or more finite variances above 0 to choose from, got "
            f"{settings.observation.variances}: add some, or set model.fixed_variance"
        )
    _check_shared(settings, model, data)


def check_adversarial_training(settings: Settings, data: ImageData) -> None:
    """Raise InputError for training settings that adversarial models do not support."""
    estimator, trainer = settings.estimator, settings.trainer
    for key, value, neutral in (
        ("estimator.samples", estimator.samples, 1),
        ("estimator.kl_warmup_epochs", estimator.kl_warmup_epochs, None),
        ("trainer.variance_learning_rate", trainer.variance_learning_rate, None),
    ):
        if value != neutral:
            raise InputError(
                f"{key} is for models with a likelihood, and model={settings.model.name} has none: omit it"
            )
    selection = settings.evaluation.selection
    if selection is not None and not (has_classifier(data) and len(data.validation)):
        raise InputError(
            f"evaluation.selection={selection} needs labels of two classes or more and validation images, and "
            f"{data.name} lacks them: omit it"
        )
    if trainer.early_stopping is not None and selection is None:
        raise InputError(
            "trainer.early_stopping needs a metric: set evaluation.selection=classifier_frechet_distance, or "
            "trainer.early_stopping=null"
        )
    if len(data.validation):
        _check_comparable(data.validation, len(data.validation), "raise data.validation, or set it to 0")
    else:
        _check_comparable(data.train, len(data.train), "raise data.train_images")


def _check_comparable(split: Split, count: int, remedy: str) -> None:
    """Raise InputError if the split's images cannot be compared with generated ones."""
    if count < 2:
        raise InputError(f"comparing generated images needs two or more {split.name} images, got {count}: {remedy}")
    images = real_images(split, min(count, DIVERSITY_IMAGES))
    if bool((images == images[:1]).all()):
        raise InputError(
            f"the first {len(images)} {split.name} images are all the same: diversity relative to them is undefined"
        )


def _check_shared(settings: EvaluationSettings, model: LatentModel | AdversarialModel, data: ImageData) -> None:
    """Checks shared by both families."""
    if settings.probe and settings.split == "train":
        raise InputError("evaluation.probe=true fits to the training split: evaluate test or validation")
    if settings.probe and data.train.labels is not None and len(data.train.labels.unique()) < 2:
        raise InputError(f"evaluation.probe=true needs two classes or more, and {data.name} has one: omit it")
    images = len(getattr(data, settings.split))
    if not images:
        raise InputError(
            f"evaluation.split={settings.split}: data set {data.name} has no images in this split: set "
            "data.validation=0.1, or evaluation.split=test"
        )
    make_annealing(settings)
    make_estimates(settings)
    make_amis(settings)
    count = min(settings.generated.samples, settings.images or images, images)
    if isinstance(model, AdversarialModel) or settings.quality or settings.inception_weights is not None:
        few = settings.images is not None and settings.images < min(images, 2)
        _check_comparable(
            getattr(data, settings.split),
            count,
            "raise evaluation.images" if few else "choose another evaluation.split",
        )
    if settings.quality and has_classifier(data) and count <= settings.generated.neighbours:
        limits = {"evaluation.images": settings.images, "evaluation.generated.samples": settings.generated.samples}
        low = [key for key, limit in limits.items() if limit is not None and limit <= settings.generated.neighbours]
        more = f", or raise {' and '.join(low)}" if images > settings.generated.neighbours else ""
        raise InputError(
            f"evaluation.generated.neighbours={settings.generated.neighbours} needs more images than neighbours, and "
            f"{count} are compared: set it to at most {count - 1}{more}"
        )
    if settings.inception_weights is not None:
        if data.image_shape[0] not in (1, 3):
            raise InputError(
                f"evaluation.inception_weights needs grey or RGB images, and those of {data.name} have "
                f"{data.image_shape[0]} channels: omit it"
            )
        check_inception(expand_user(settings.inception_weights))
    sets = parse_sets(settings.sets)
    if settings.interpolation:
        parse_waypoints(settings.interpolation, sets)
    for expression in settings.arithmetic:
        parse_expression(expression, sets)
    if model.classes and (settings.interpolation or settings.arithmetic):
        data.class_index(settings.label)


def check_step_options(settings: TrainerSettings, device: torch.device) -> None:
    """Raise InputError for a precision or compilation that the device or the number of processes does not support."""
    check_precision(settings.precision, device)
    if settings.compile == "graph" and device.type != "cuda":
        raise InputError(
            f"trainer.compile=graph needs a CUDA GPU, and this run is on {device}: use trainer.compile=auto"
        )
    if settings.compile == "graph" and settings.processes > 1:
        raise InputError(
            f"trainer.compile=graph captures the steps of one process, and trainer.processes={settings.processes}: use "
            "trainer.compile=auto"
        )


def uses_amis(settings: EvaluationSettings, model: LatentModel | AdversarialModel) -> bool:
    """Whether to evaluate by adaptive importance sampling: by default, where there is a likelihood of its own."""
    if settings.amis.enabled is not None:
        return settings.amis.enabled
    return isinstance(model, LatentModel) and model.has_density and model.latent_dim <= MAX_LATENT_DIM


def uses_observation_model(settings: EvaluationSettings, model: AdversarialModel) -> bool:
    """Whether to evaluate a log-likelihood of this adversarial model."""
    return settings.ais or settings.bdmc or settings.estimates or uses_amis(settings, model)


def _options(settings: Any) -> dict[str, Any]:
    return {k: v for k, v in asdict(settings).items() if k != "images"}


def make_annealing(settings: EvaluationSettings) -> Annealing:
    """Settings of annealed importance sampling, from `evaluation.annealing`."""
    return Annealing(**_options(settings.annealing))


def make_estimates(settings: EvaluationSettings) -> Estimates:
    """Settings of the estimates against K, from `evaluation.estimate`."""
    return Estimates(**_options(settings.estimate))


def make_amis(settings: EvaluationSettings) -> Amis:
    """Settings of adaptive importance sampling, from `evaluation.amis`."""
    return Amis(**{field.name: getattr(settings.amis, field.name) for field in fields(Amis)})


def make_refinement(settings: EvaluationSettings) -> Refinement:
    """Settings of the optimisation of q*, from `evaluation.gap`."""
    return Refinement(**_options(settings.gap))
