"""What the evaluations of all families begin with, and annealed importance sampling, which serves them all."""

from __future__ import annotations

from typing import Generic, TypeVar

from torch import Tensor

from vaerun.config.schema import EvaluationSettings
from vaerun.data.dataset import ImageData, Split
from vaerun.evaluation.likelihood.annealed import annealed_importance_sampling, bidirectional
from vaerun.evaluation.results import EvaluationResults
from vaerun.models import AdversarialModel, LatentModel
from vaerun.run.preflight import make_annealing
from vaerun.signals import ShutdownSignal
from vaerun.tracking.monitor import Monitor

M = TypeVar("M", LatentModel, AdversarialModel)


class Evaluator(Generic[M]):
    """One evaluation, piece by piece; each adds to `found`."""

    def __init__(
        self, model: M, data: ImageData, settings: EvaluationSettings, seed: int, stop: ShutdownSignal
    ) -> None:
        self.model: M = model
        self.data, self.settings, self.seed = data, settings, seed
        self.split: Split = getattr(data, settings.split)
        self.images = min(settings.images or len(self.split), len(self.split))
        self.results = EvaluationResults()
        self.monitor = Monitor(stop, warn=self.results.warnings.append)

    @property
    def annealed_images(self) -> int:
        """The first so many are annealed."""
        return min(self.images, self.settings.annealing.images)

    def annealed_importance_sampling(self, model: LatentModel) -> Tensor:
        """ais, ais_ess and ais_acceptance of the split's images; returns ais per image [N], nats."""
        n = self.annealed_images
        with self.monitor.task(f"annealed importance sampling of {self.split.name}", n) as task:
            values = annealed_importance_sampling(
                model,
                self.split,
                make_annealing(self.settings),
                seed=self.seed,
                images=n,
                monitor=task,
            )
        for name, value in values.items():
            self.results.add_mean(name, value)
        return values["ais"]

    def bidirectional_monte_carlo(self, model: LatentModel) -> None:
        """bdmc_lower, bdmc_upper, their gap and acceptances, of images drawn from the model."""
        n = self.annealed_images
        with self.monitor.task("bidirectional Monte Carlo on simulated images", n) as task:
            values = bidirectional(
                model,
                make_annealing(self.settings),
                images=n,
                seed=self.seed,
                monitor=task,
            )
        for name, value in values.items():
            self.results.add_mean(name, value)
        self.results.add_mean("bdmc_gap", values["bdmc_upper"] - values["bdmc_lower"])
