"""What is looked at of generated images after each epoch: whether they vary as the data do."""

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

DIVERSITY_IMAGES = 500  # pairs among them: 124,750
SELECTION_IMAGES = 5000  # of the Frechet distance, which is biased by about 1/N
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
    """`count` images [N, C, H, W] in [0, 1] on the CPU, and their labels [N] or None.

    The noise of a batch depends on the seed, the stream (what the images are for: what selects parameters is not what
    they are judged by) and its place alone. A conditional model is given the labels of the split's
    images, in order and over again.

    Raises RunError for images that are not finite.
    """
    parts, given = [], None
    if model.classes:
        assert split.labels is not None
        given = split.labels[torch.arange(count, device=split.labels.device) % len(split)]
    with torch.no_grad():
        for start in range(0, count, BATCH):
            monitor.check()
            n = min(BATCH, count - start)
            source = seeded_generator("cpu", seed, "generated", stream, start)
            noise = torch.randn(BATCH, model.noise_dim, generator=source)[:n]
            c = None if given is None else split.one_hot(given[start : start + n])
            parts.append(split.transform.to_unit(model.generate(noise.to(split.images.device), c)).cpu())
            monitor.advance(n)
    images = torch.cat(parts)
    if not bool(images.isfinite().all()):
        raise RunError(
            "generated images are not finite numbers: the parameters have diverged; lower trainer.learning_rate or set "
            "trainer.clip_norm=100"
        )
    return images, given


def real_images(split: Split, count: int) -> Tensor:
    """The first `count` images of a split [N, C, H, W] in [0, 1] on the CPU."""
    return torch.cat([split.transform.to_unit(b.x).cpu() for b in split.batches(BATCH, min(count, len(split)))])


class SampleValidator:
    """Diversity of generated images after each epoch, and if asked for the Frechet distance that selects parameters.

    Arguments:
        model: to look at.
        split: what it is compared with.
        threshold: share of the split's diversity below which the model counts as collapsed.
        features: the classifier whose features the Frechet distance is of, or None.
        seed: of the noise, the same every time.
        monitor: checked between batches, warned when a collapse begins.

    Attributes:
        selection: the metric that the best parameters are chosen by, or None.
        space: the classifier's name, or None: distances of different ones do not compare.
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
        """PREFIX/diversity (1: as varied as the data), PREFIX/mode_collapse (0 or 1) and what selects."""
        images = generate_images(
            self.model, self.split, len(self._real), seed=self.seed, monitor=self.monitor, stream="validation"
        )[0]
        found = diversity(images[:DIVERSITY_IMAGES], self._real[:DIVERSITY_IMAGES])
        collapsed = not found >= self.threshold
        if collapsed and not self._collapsed:
            self.monitor.warn(
                "mode collapse (or too little training): generated images have "
                f"{found:.2f} of the diversity of the {self.split.name} images, "
                f"below evaluation.diversity={self.threshold:g}"
            )
        self._collapsed = collapsed
        values = {f"{self.prefix}/diversity": found, f"{self.prefix}/mode_collapse": float(collapsed)}
        if self.features is not None and self._real_features is not None and self.selection is not None:
            values[self.selection] = frechet_distance(self._real_features, self.features(images))
        return values
