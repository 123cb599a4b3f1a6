"""Linear probe: how well a linear classifier tells the classes apart on features that were learned without labels.

Multinomial logistic regression with the usual ridge penalty (C = 1) on features scaled to mean 0 and variance 1 over
the training images. Beside its accuracy stands that of answering always the class that is most frequent in training.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.errors import InputError
from vaerun.evaluation.latent.statistics import LatentStatistics, latent_statistics
from vaerun.models import LatentModel
from vaerun.randomness import permutation
from vaerun.tracking.monitor import SILENT, Monitor

TRAIN_IMAGES = 10_000  # a fit takes seconds
ITERATIONS = 2_000


@dataclass(frozen=True)
class Probe:
    """What a linear classifier reaches.

    Attributes:
        accuracy: share of test images classified rightly, in [0, 1].
        baseline: the same for answering always the training images' most frequent class.
        train_images, images: how many it was fitted to and tested on.
        note: what to know of the fit (that it did not converge), or None.
    """

    accuracy: float
    baseline: float
    train_images: int
    images: int
    warning: str | None


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor | None,
    test_features: Tensor,
    test_labels: Tensor | None,
    *,
    seed: int = 0,
    iterations: int = ITERATIONS,
) -> Probe:
    """Fit a linear classifier to training features and test it.

    Arguments:
        train_features, test_features: [N, n] and [M, n].
        train_labels, test_labels: int64 [N] and [M].
        seed: where there are more than 10,000 training images, of which 10,000 are drawn.
        iterations: at most so many; if they do not suffice the result's `note` says so.

    Raises InputError where there are no labels, fewer than two classes in training, no test images, or a feature that
    is not finite.
    """
    if train_labels is None or test_labels is None:
        raise InputError("a linear probe needs labels, and this data has none: leave the probe out")
    if not len(test_features):
        raise InputError("a linear probe needs test images, and there are none")
    rows = permutation(len(train_features), seed, "probe")[:TRAIN_IMAGES]
    x, y = (value.detach().cpu()[rows] for value in (train_features.double(), train_labels))
    fresh, truth = test_features.detach().cpu().double(), test_labels.cpu()
    if len(y.unique()) < 2:
        raise InputError(f"a linear probe needs two classes or more, and the {len(y)} training images have fewer")
    if not bool(x.isfinite().all() and fresh.isfinite().all()):
        raise InputError("a linear probe needs finite features, and some are not")

    from sklearn.exceptions import ConvergenceWarning  # takes a second to import
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=iterations))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        classifier.fit(x.numpy(), y.numpy())
    note = None
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            note = f"the fit had not converged after {iterations} iterations: the accuracy may be too low"
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    predicted = torch.from_numpy(classifier.predict(fresh.numpy()))
    return Probe(
        accuracy=float((predicted == truth).double().mean()),
        baseline=float((truth == y.mode().values).double().mean()),
        train_images=len(y),
        images=len(truth),
        warning=note,
    )


def probe_latents(
    model: LatentModel, train: Split, statistics: LatentStatistics, *, seed: int, monitor: Monitor = SILENT
) -> Probe:
    """Linear probe of the posterior means: fitted on the training split, tested on images looked at before.

    Arguments:
        model: in evaluation mode.
        train: the training split; of more than 10,000 images 10,000 are drawn by the seed.
        statistics: of the images to test on.
        seed: of that choice, and of the posterior's noise where it needs any.
        monitor: checked between batches.

    Raises InputError as linear_probe does; for a conditional model too: its encoder is given the label.
    """
    if model.classes:
        raise InputError("a linear probe of a conditional model says nothing: its encoder is given the label")
    if train.labels is None or statistics.labels is None:
        raise InputError("a linear probe needs labels, and this data has none: leave the probe out")
    rows = permutation(len(train), seed, "probe")[:TRAIN_IMAGES].sort().values.to(train.images.device)
    some = Split(train.name, train.images[rows], train.labels[rows], train.classes, train.transform, train.binarised)
    fitted = latent_statistics(model, some, seed=seed, monitor=monitor)
    return linear_probe(fitted.means, fitted.labels, statistics.means, statistics.labels, seed=seed)
