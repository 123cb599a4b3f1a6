"""What is measured and shown of generated images, of either family of models."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch

from vaerun.config.schema import EvaluationSettings
from vaerun.data.cache import cache_dir
from vaerun.data.dataset import ImageData, Split
from vaerun.errors import InputError
from vaerun.evaluation.latent.traversals import arithmetic, interpolation, parse_sets
from vaerun.evaluation.results import EvaluationResults
from vaerun.evaluation.samples.classifier import Classifier, load_or_train_classifier
from vaerun.evaluation.samples.inception import PUBLISHED_SHA256, check_inception, inception_features
from vaerun.evaluation.samples.sample_quality import diversity, frechet_distance, prdc
from vaerun.evaluation.samples.sample_validation import DIVERSITY_IMAGES, generate_images, real_images
from vaerun.models import AdversarialModel, LatentModel
from vaerun.run.build import MAX_CLASSES
from vaerun.storage.paths import expand_user
from vaerun.tracking.monitor import SILENT, Monitor


def has_classifier(data: ImageData) -> bool:
    """Whether the data set's labels are classes, and enough of them for a classifier of its own."""
    labels = data.arrays.train_labels
    return 2 <= data.classes <= MAX_CLASSES and labels is not None and len(np.unique(labels)) >= 2


def check_classifier_cache() -> None:
    """Raises InputError, before any work, where a classifier could not be kept."""
    folder = cache_dir() / "classifiers"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write to {folder} ({error.strerror}), where the classifier is kept that compares images: set "
            "VAERUN_CACHE, or evaluation.quality=false"
        ) from error


def dataset_classifier(data: ImageData, monitor: Monitor = SILENT) -> Classifier:
    """The classifier of this data set whose features are compared; trained on the first use, then kept in the cache."""
    folder = cache_dir() / "classifiers"
    return load_or_train_classifier(
        data.arrays, data.name, folder=folder, device=data.train.images.device, monitor=monitor
    )


def sample_quality(
    model: AdversarialModel | LatentModel,
    data: ImageData,
    settings: EvaluationSettings,
    results: EvaluationResults,
    *,
    seed: int,
    monitor: Monitor,
) -> None:
    """Diversity, and if asked for distances between as many generated and real images, in feature spaces.

    `found` gains the metrics diversity, classifier_frechet_distance, precision, recall, density, coverage, of a
    conditional model label_agreement, and inception_frechet_distance.
    """
    split: Split = getattr(data, settings.split)
    available = min(settings.images or len(split), len(split))
    count = min(settings.generated.samples, available)
    wanted = settings.quality or settings.inception_weights is not None
    if not wanted:
        count = min(count, DIVERSITY_IMAGES)
    with monitor.task("generating images", count) as task:
        fake, given = generate_images(model, split, count, seed=seed, monitor=task)
        truth = real_images(split, count)
        results.metrics["diversity"] = diversity(fake[:DIVERSITY_IMAGES], truth[:DIVERSITY_IMAGES])
        if settings.quality and not has_classifier(data):
            results.warnings.append(
                f"data set {data.name} has no labels of two to {MAX_CLASSES} classes, so there is no classifier whose "
                "features could be compared: no Frechet distance, precision, recall, density and coverage"
            )
        elif settings.quality:
            space = dataset_classifier(data, task)
            task.check()
            a, b = space.features(truth), space.features(fake)
            results.metrics["classifier_frechet_distance"] = frechet_distance(a, b)
            near = prdc(a, b, neighbours=settings.generated.neighbours)
            results.metrics |= {k: float(v) for k, v in asdict(near).items()}
            results.details["classifier"] = {"name": space.name, "accuracy": space.accuracy}
            if given is not None:
                results.metrics["label_agreement"] = float((space.predict(fake) == given.cpu()).double().mean())
        if settings.inception_weights is not None:
            weights = expand_user(settings.inception_weights)
            digest = check_inception(weights)
            features = inception_features(weights, device=split.images.device)
            results.metrics["inception_frechet_distance"] = frechet_distance(features(truth), features(fake))
            results.details["inception"] = {"sha256": digest, "standard": digest.startswith(PUBLISHED_SHA256)}
            if not digest.startswith(PUBLISHED_SHA256):
                results.warnings.append(
                    f"{weights} are not the weights of published Inception FIDs (sha256 {PUBLISHED_SHA256}...): "
                    "the distance compares with itself only"
                )


def traversal_pictures(
    model: AdversarialModel | LatentModel, data: ImageData, settings: EvaluationSettings, results: EvaluationResults
) -> None:
    """The pictures `interpolation` and `arithmetic_N` from named sets of samples."""
    if not settings.interpolation and not settings.arithmetic:
        return
    split: Split = getattr(data, settings.split)
    sets = parse_sets(settings.sets)
    like = data.mean
    c = split.one_hot(torch.tensor(settings.label, device=like.device)) if model.classes else None

    def generate(noise: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return split.transform.to_unit(model.generate(noise, labels))

    if settings.interpolation:
        stops = settings.interpolation
        results.pictures["interpolation"] = interpolation(generate, stops, sets, model.noise_dim, like, c=c)
        results.texts.append(
            f"figure interpolation: {' -> '.join(map(str, stops))}, a row for each pair, on great circles"
        )
    for number, expression in enumerate(settings.arithmetic, 1):
        name = f"arithmetic_{number}"
        picture, words = arithmetic(generate, expression, sets, model.noise_dim, like, c=c)
        results.pictures[name] = picture
        results.texts.append(f"figure {name}: {words}; first the operands, then the result amid eight neighbours")
