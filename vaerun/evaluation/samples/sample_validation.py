"""Generated and real images, and the validation of an adversarial model on them after each epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.errors import RunError
from vaerun.evaluation.samples.classifier import Classifier
from vaerun.evaluation.samples.sample_quality import diversity, frechet_distance
from vaerun.models import AdversarialModel, LatentModel
from vaerun.randomness import seeded_generator
from vaerun.tracking.monitor import SILENT, Monitor

DIVERSITY_IMAGES = 500  # with 124,750 pairs
SELECTION_IMAGES = 5000  # for the Frechet distance, whose bias is about proportional to 1/N
BATCH = 500


def generate_images(
    model: AdversarialModel | LatentModel,
    split: Split,
    count: int,
    *,
    seed: int,
    monitor: Monitor = SILENT,
    stream: str = "evaluation",
) -> tuple[Tensor, Tensor | None]:
    """Generate `count` images [N, C, H, W] in [0, 1] on the CPU; also returns their labels [N], or None.

    The noise of a batch is keyed by the seed, the stream (the images' purpose: selection and evaluation use different
    ones) and its position. A conditional model is given the labels of the split's images, cyclically.

    Raises RunError for images that are not finite.
    """
    parts, labels = [], None
    if model.classes:
        assert split.labels is not None
        labels = split.labels[torch.arange(count, device=split.labels.device) % len(split)]
    with torch.no_grad():
        for start in range(0, count, BATCH):
            monitor.check()
            n = min(BATCH, count - start)
            source = seeded_generator("cpu", seed, "generated", stream, start)
            noise = torch.randn(BATCH, model.noise_dim, generator=source, dtype=torch.float32, device="cpu")[:n]
            c = None if labels is None else split.one_hot(labels[start : start + n])
            parts.append(split.transform.to_unit(model.generate(noise.to(next(model.parameters())), c)).cpu())
            monitor.advance(n)
    images = torch.cat(parts)
    if not bool(images.isfinite().all()):
        raise RunError(
            "some generated images are not finite: the parameters have diverged; lower trainer.learning_rate or set "
            "trainer.clip_norm=100"
        )
    return images, labels


def real_images(split: Split, count: int) -> Tensor:
    """The first `count` images of a split [N, C, H, W] in [0, 1] on the CPU."""
    return torch.cat([split.transform.to_unit(b.x).cpu() for b in split.batches(BATCH, min(count, len(split)))])


class SampleValidator:
    """Diversity of generated images after each epoch, and optionally the Frechet distance, which selects parameters.

    Arguments:
        model: the model in training.
        split: real images to compare with.
        threshold: diversity below which the model counts as collapsed.
        features: the classifier that provides features for the Frechet distance; None: no such metric.
        seed: of the noise, the same every time.
        monitor: checked between batches, warned when a collapse begins.

    Attributes:
        selection: name of the metric that selects the best parameters, or None.
        feature_space: name of the classifier, or None; distances in different feature spaces are not comparable.
    """

    def __init__(
        self,
        model: AdversarialModel,
        split: Split,
        *,
        threshold: float,
        features: Classifier | None,
        seed: int,
        monitor: Monitor = SILENT,
    ) -> None:
        self.model, self.split, self.threshold = model, split, threshold
        self.features = None if features is None else features.features
        self.feature_space = None if features is None else features.name
        self.seed, self.monitor = seed, monitor
        self.prefix = "val" if split.name == "validation" else split.name
        self.selection = None if features is None else f"{self.prefix}/classifier_frechet_distance"
        self._collapsed = False
        count = DIVERSITY_IMAGES if features is None else max(DIVERSITY_IMAGES, SELECTION_IMAGES)
        self._real = real_images(split, count)
        self._real_features = None if self.features is None else self.features(self._real)

    def __call__(self) -> dict[str, float]:
        """PREFIX/diversity (1: as varied as the data), PREFIX/mode_collapse (0 or 1), and any selection metric."""
        images = generate_images(
            self.model, self.split, len(self._real), seed=self.seed, monitor=self.monitor, stream="validation"
        )[0]
        value = diversity(images[:DIVERSITY_IMAGES], self._real[:DIVERSITY_IMAGES])
        collapsed = not value >= self.threshold
        if collapsed and not self._collapsed:
            self.monitor.warn(
                "mode collapse (or too little training): generated images have "
                f"{value:.2f} of the diversity of the {self.split.name} images, "
                f"below evaluation.diversity={self.threshold:g}"
            )
        self._collapsed = collapsed
        metrics = {f"{self.prefix}/diversity": value, f"{self.prefix}/mode_collapse": float(collapsed)}
        if self.features is not None and self._real_features is not None and self.selection is not None:
            metrics[self.selection] = frechet_distance(self._real_features, self.features(images))
        return metrics
