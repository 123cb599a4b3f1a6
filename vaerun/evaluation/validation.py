"""The ELBO of a whole split (a plain autoencoder: its reconstruction), the same noise for an image every time."""

from __future__ import annotations

import torch

from vaerun.data.dataset import Split
from vaerun.estimators import Estimator, elbo_mc, reconstruction
from vaerun.models import LatentModel
from vaerun.randomness import ImageNoise
from vaerun.training.signals import Stop

KEPT = 2**25  # noise numbers (128 MiB of float32) that are remembered from one validation to the next


class Validator:
    """Mean ELBO of the validation split, one Monte Carlo sample per image, valid for every posterior.

    A plain autoencoder has none: there it is log p(x | z) at the encoder's z.

    Arguments:
        model: to evaluate.
        split: on which images.
        seed: of the noise.
        batch_size: images at a time; it does not change the result beyond rounding.
        stop: looked at between batches.
    """

    def __init__(self, model: LatentModel, split: Split, *, seed: int, batch_size: int, stop: Stop) -> None:
        self.model, self.split, self.seed, self.batch_size, self.stop = model, split, seed, batch_size, stop
        self.estimator: Estimator = elbo_mc if model.has_density else reconstruction
        self._noise: dict[int, ImageNoise] = {}

    @staticmethod
    def selection_of(model: LatentModel) -> str:
        """The metric that the best parameters of this model are chosen by; higher is better."""
        return "val/elbo" if model.has_density else "val/reconstruction"

    def __call__(self) -> dict[str, float]:
        """{val/elbo, val/kl, val/reconstruction}, nats per image, means over all images of the split.

        Of a plain autoencoder only val/reconstruction.
        """
        sums: dict[str, float] = {}
        with torch.no_grad():
            for batch in self.split.batches(self.batch_size):
                self.stop.check()
                joint = self.model.joint(batch.x, batch.c if self.model.classes else None, self._noise_of(batch.rows))
                found = self.estimator(joint, self.model.infer(joint), 1)
                values = {**found.terms, found.name: found.bound + batch.log_det}
                values["reconstruction"] = found.terms["reconstruction"] + batch.log_det
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
