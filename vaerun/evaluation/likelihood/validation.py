"""The ELBO of a whole split (a plain autoencoder: its reconstruction), the same noise for an image every time."""

from __future__ import annotations

import torch

from vaerun.data.dataset import Batch, Split
from vaerun.estimators import Estimate, Estimator, elbo_mc, estimate
from vaerun.evaluation.oom import adaptive_batches
from vaerun.models import LatentModel
from vaerun.randomness import ImageNoise
from vaerun.tracking.monitor import SILENT, Monitor

MAX_CACHED_NOISE = 2**25  # noise numbers (128 MiB of float32) that are remembered from one validation to the next


class Validator:
    """Mean ELBO of the validation split, one Monte Carlo sample per image, valid for every posterior.

    Where the estimator trains another bound, that one (of the same K samples) stands beside the ELBO and decides which
    parameters are the best: an importance-weighted bound may rise while the ELBO falls. A plain autoencoder has
    neither; there it is log p(x | z) at the encoder's z.

    Arguments:
        model: to evaluate.
        split: on which images.
        estimator, samples: what is trained, and its K.
        seed: of the noise.
        batch_size: images at a time; it does not change the result beyond rounding.
        monitor: checked between batches, warned where memory ran out and batches were halved.

    Attributes:
        selection: the metric that the best parameters are chosen by; higher is better.
    """

    def __init__(
        self,
        model: LatentModel,
        split: Split,
        *,
        estimator: Estimator,
        samples: int,
        seed: int,
        batch_size: int,
        monitor: Monitor = SILENT,
    ) -> None:
        self.model, self.split, self.seed, self.monitor = model, split, seed, monitor
        self._noise: dict[tuple[int, int], ImageNoise] = {}
        self.estimator, self.samples, self.batch_size = estimator, samples, max(1, batch_size // samples)
        with torch.no_grad():
            name = self._estimate(split.batch(0, 1)).name
        self.selection = "val/elbo" if name.endswith("no_lower_bound") else f"val/{name}"
        if name == "elbo":  # KL weights and closed forms are for training: one way for all
            self.estimator, self.samples, self.batch_size = elbo_mc, 1, batch_size
        self._noise.clear()

    def _estimate(self, batch: Batch) -> Estimate:
        joint = self.model.joint(batch.x, batch.c if self.model.classes else None, self._noise_of(batch.rows))
        return estimate(self.estimator, self.model.infer, joint, self.samples)

    def __call__(self) -> dict[str, float]:
        """Means over all images of the split, nats per image: val/elbo, val/kl, val/reconstruction, val/BOUND.

        Of a plain autoencoder only val/reconstruction.
        """
        sums: dict[str, float] = {}
        what = f"validation on {self.split.name}"
        with torch.no_grad():
            parts = adaptive_batches(
                len(self.split),
                self.batch_size,
                self._batch,
                monitor=self.monitor,
                what=what,
                setting="trainer.batch_size",
            )
            for values in parts:
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + value
        return {f"val/{name}": value / len(self.split) for name, value in sums.items()}

    def _batch(self, start: int, end: int, at_once: int) -> dict[str, float]:
        """Sums over images start..end-1."""
        self.monitor.check()
        if at_once != self.batch_size:  # what memory allows, from now on
            self.batch_size = at_once
            self._noise.clear()
        batch = self.split.batch(start, end)
        found = self._estimate(batch)
        values = {**found.terms, found.name: found.bound + batch.log_det}
        if {"reconstruction", "kl"} <= values.keys():
            values["elbo"] = found.terms["reconstruction"] - found.terms["kl"] + batch.log_det
        values["reconstruction"] = found.terms["reconstruction"] + batch.log_det
        return {name: value.cpu().double().sum().item() for name, value in values.items()}

    def _noise_of(self, rows: torch.Tensor) -> ImageNoise:
        place = int(rows[0]), len(rows)
        if place not in self._noise:
            keep = len(self.split) * self.model.latent_dim * self.samples <= MAX_CACHED_NOISE
            noise = ImageNoise(self.seed, rows.tolist(), self.model.latent_dim, self.model.mean, keep)
            if not keep:
                return noise
            self._noise[place] = noise
        return self._noise[place]
