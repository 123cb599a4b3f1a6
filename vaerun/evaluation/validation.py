"""The ELBO of a whole split, the same noise for an image each time it is asked for."""

from __future__ import annotations

import torch

from vaerun.data.dataset import Split
from vaerun.estimators import elbo_mc
from vaerun.models import LatentModel
from vaerun.randomness import ImageNoise
from vaerun.training.signals import Stop

KEPT = 2**25  # noise numbers (128 MiB of float32) that are remembered from one validation to the next


class Validator:
    """Mean ELBO of the validation split, one Monte Carlo sample per image, valid for every posterior.

    Arguments:
        model: to evaluate.
        split: on which images.
        seed: of the noise.
        batch_size: images at a time; it does not change the result beyond rounding.
        stop: looked at between batches.
    """

    def __init__(self, model: LatentModel, split: Split, *, seed: int, batch_size: int, stop: Stop) -> None:
        self.model, self.split, self.seed, self.batch_size, self.stop = model, split, seed, batch_size, stop
        self._noise: dict[int, ImageNoise] = {}

    def __call__(self) -> dict[str, float]:
        """{val/elbo, val/kl, val/reconstruction}, nats per image, means over all images of the split."""
        sums: dict[str, float] = {}
        with torch.no_grad():
            for batch in self.split.batches(self.batch_size):
                self.stop.check()
                joint = self.model.joint(batch.x, batch.c if self.model.classes else None, self._noise_of(batch.rows))
                estimate = elbo_mc(joint, self.model.infer(joint), 1)
                values = {"elbo": estimate.bound + batch.log_det, **estimate.terms}
                values["reconstruction"] = values["reconstruction"] + batch.log_det
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + value.cpu().double().sum().item()
        return {f"val/{name}": value / len(self.split) for name, value in sums.items()}

    def _noise_of(self, rows: torch.Tensor) -> ImageNoise:
        start = int(rows[0])
        if start not in self._noise:
            keep = len(self.split) * self.model.latent_dim <= KEPT
            noise = ImageNoise(self.seed, rows.tolist(), self.model.latent_dim, self.model.mean, keep)
            if not keep:
                return noise
            self._noise[start] = noise
        return self._noise[start]
