"""Linear probe: accuracy of a linear classifier on features that were learned without labels.

The classifier is multinomial logistic regression with an L2 penalty (C = 1) on features standardised over the training
images. The baseline is the accuracy of always predicting the most frequent class of the training images.
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

TRAIN_IMAGES = 10_000  # maximum, so that a fit takes seconds
ITERATIONS = 2_000


@dataclass(frozen=True)
class ProbeResult:
    """Result of a linear probe.

    Attributes:
        accuracy: fraction of test images classified correctly, in [0, 1].
        baseline: accuracy of always predicting the most frequent training class.
        train_images, images: number of training and test images.
        warning: that the fit did not converge, or None.
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
) -> ProbeResult:
    """Fit a linear classifier to training features and test it.

    Arguments:
        train_features, test_features: [N, n] and [M, n].
        train_labels, test_labels: int64 [N] and [M].
        seed: of the random choice of 10,000 training images, if there are more.
        iterations: maximum number of iterations; if the fit does not converge, the result has a warning.

    Raises InputError for missing labels, fewer than two training classes, no test images, or features that are not
    finite.
    """
    if train_labels is None or test_labels is None:
        raise InputError("a linear probe needs labels, but this data set has none: omit the probe")
    if not len(test_features):
        raise InputError("a linear probe needs test images, but there are none")
    rows = permutation(len(train_features), seed, "probe")[:TRAIN_IMAGES]
    x, y = (value.detach().cpu()[rows] for value in (train_features.double(), train_labels))
    x_test, y_test = test_features.detach().cpu().double(), test_labels.cpu()
    if len(y.unique()) < 2:
        raise InputError(f"a linear probe needs two classes or more, but the {len(y)} training images have fewer")
    if not bool(x.isfinite().all() and x_test.isfinite().all()):
        raise InputError("a linear probe needs finite features, but some are not")

    from sklearn.exceptions import ConvergenceWarning  # takes a second to import
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=iterations))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        classifier.fit(x.numpy(), y.numpy())
    unconverged = None
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            unconverged = f"the fit did not converge in {iterations} iterations: the accuracy may be too low"
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    predicted = torch.from_numpy(classifier.predict(x_test.numpy()))
    return ProbeResult(
        accuracy=float((predicted == y_test).double().mean()),
        baseline=float((y_test == y.mode().values).double().mean()),
        train_images=len(y),
        images=len(y_test),
        warning=unconverged,
    )


def probe_latents(
    model: LatentModel, train: Split, statistics: LatentStatistics, *, seed: int, monitor: Monitor = SILENT
) -> ProbeResult:
    """Linear probe of the posterior means, fitted to the training split and tested on the images of `statistics`.

    Arguments:
        model: in evaluation mode.
        train: the training split; if it has more than 10,000 images, 10,000 are drawn.
        statistics: posterior moments of the test images.
        seed: of that draw, and of the noise of posterior moments that are estimated from samples.
        monitor: checked between batches.

    Raises InputError as linear_probe does, and for a conditional model, whose encoder is given the label.
    """
    if model.classes:
        raise InputError("a linear probe of a conditional model is meaningless: its encoder is given the label")
    if train.labels is None or statistics.labels is None:
        raise InputError("a linear probe needs labels, but this data set has none: omit the probe")
    rows = permutation(len(train), seed, "probe")[:TRAIN_IMAGES].sort().values.to(train.images.device)
    subset = Split(train.name, train.images[rows], train.labels[rows], train.classes, train.transform, train.binarised)
    fitted = latent_statistics(model, subset, seed=seed, monitor=monitor)
    return linear_probe(fitted.means, fitted.labels, statistics.means, statistics.labels, seed=seed)
