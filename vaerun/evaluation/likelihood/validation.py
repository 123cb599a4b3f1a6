"""Validation during training: the mean ELBO of a split, with the same noise for an image every time."""

from __future__ import annotations

import torch

from vaerun.data.dataset import Batch, Split
from vaerun.estimators import Estimate, Estimator, elbo_mc, estimate
from vaerun.evaluation.oom import adaptive_batches
from vaerun.models import LatentModel
from vaerun.randomness import ImageNoise
from vaerun.tracking.monitor import SILENT, Monitor

MAX_CACHED_NOISE = 2**25  # noise numbers (128 MiB of float32) cached from one validation to the next


class Validator:
    """Mean ELBO of the validation split from one Monte Carlo sample per image, valid for every posterior.

    Where the estimator trains another bound, that bound (from the same K samples) is reported with the ELBO and selects
    the best parameters: an importance-weighted bound may rise while the ELBO falls. A plain autoencoder has neither;
    its metric is log p(x | z) at the encoder's z.

    Arguments:
        model: the model in training.
        split: the validation images.
        estimator, samples: the training objective and its K.
        seed: of the noise.
        batch_size: images per batch; it does not change the result beyond rounding.
        monitor: checked between batches, warned if memory runs out and batches are halved.

    Attributes:
        selection: name of the metric that selects the best parameters; higher is better.
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
        if name == "elbo":  # KL weights and closed forms are for training: validation is the same for all
            self.estimator, self.samples, self.batch_size = elbo_mc, 1, batch_size
        self._noise.clear()

    def _estimate(self, batch: Batch) -> Estimate:
        joint = self.model.joint(batch.x, batch.c if self.model.classes else None, self._noise_of(batch.rows))
        return estimate(self.estimator, self.model.infer, joint, self.samples)

    def __call__(self) -> dict[str, float]:
        """Means over the split, in nats per image: val/elbo, val/kl, val/reconstruction and val/BOUND.

        A plain autoencoder has val/reconstruction only.
        """
        sums: dict[str, float] = {}
        with torch.no_grad():
            parts = adaptive_batches(
                len(self.split),
                self.batch_size,
                self._batch_sums,
                monitor=self.monitor,
                task=f"validation on {self.split.name}",
                setting="trainer.batch_size",
            )
            for values in parts:
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + value
        return {f"val/{name}": value / len(self.split) for name, value in sums.items()}

    def _batch_sums(self, start: int, end: int, batch_size: int) -> dict[str, float]:
        """Sums over images start..end-1."""
        self.monitor.check()
        if batch_size != self.batch_size:  # halved if memory ran out: the next validation starts with this size
            self.batch_size = batch_size
            self._noise.clear()
        batch = self.split.batch(start, end)
        result = self._estimate(batch)
        values = {**result.terms, result.name: result.bound + batch.log_det}
        if {"reconstruction", "kl"} <= values.keys():
            values["elbo"] = result.terms["reconstruction"] - result.terms["kl"] + batch.log_det
        values["reconstruction"] = result.terms["reconstruction"] + batch.log_det
        return {name: value.cpu().double().sum().item() for name, value in values.items()}

    def _noise_of(self, rows: torch.Tensor) -> ImageNoise:
        key = int(rows[0]), len(rows)
        if key not in self._noise:
            keep = len(self.split) * self.model.latent_dim * self.samples <= MAX_CACHED_NOISE
            noise = ImageNoise(self.seed, rows.tolist(), self.model.latent_dim, self.model.mean, keep)
            if not keep:
                return noise
            self._noise[key] = noise
        return self._noise[key]
