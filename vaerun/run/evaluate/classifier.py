"""Cached classifier of a data set, whose features are used to compare generated with real images."""

from __future__ import annotations

import numpy as np

from vaerun.data.cache import cache_dir
from vaerun.data.dataset import ImageData
from vaerun.errors import InputError
from vaerun.evaluation.samples.classifier import Classifier, load_or_train_classifier
from vaerun.run.build import MAX_CLASSES
from vaerun.tracking.monitor import SILENT, Monitor


def has_classifier(data: ImageData) -> bool:
    """Whether a classifier can be trained on the labels of a data set."""
    labels = data.arrays.train_labels
    return labels_are_classes(data) and data.classes >= 2 and labels is not None and len(np.unique(labels)) >= 2


def labels_are_classes(data: ImageData) -> bool:
    """Whether the labels can be classes: identifiers of images are too many, or occur less than twice on average."""
    return data.classes <= min(MAX_CLASSES, len(data.arrays.train_images) // 2)


def check_classifier_cache() -> None:
    """Raise InputError, before any work, if the cache for classifiers is not writable."""
    folder = cache_dir() / "classifiers"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write to {folder} ({error.strerror}), the cache of the classifier that compares images: set "
            "VAERUN_CACHE, or evaluation.quality=false"
        ) from error


def dataset_classifier(data: ImageData, monitor: Monitor = SILENT) -> Classifier:
    """Return the classifier of a data set, trained on first use and then cached."""
    folder = cache_dir() / "classifiers"
    return load_or_train_classifier(
        data.arrays, data.name, folder=folder, device=data.train.images.device, monitor=monitor
    )
