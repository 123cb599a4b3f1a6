"""Model families: how to check, validate, evaluate and visualise each.

These modules of vaerun.run also depend on the family: build, preflight, smoke_test, result, reevaluate,
evaluate/settings and evaluate/descriptions.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from vaerun.config.schema import EvaluationSettings, Settings
from vaerun.data.dataset import ImageData, Split
from vaerun.evaluation import Validator
from vaerun.evaluation.plots.adversarial_pictures import adversarial_pictures
from vaerun.evaluation.plots.pictures import data_and_reconstructions, data_picture, likelihood_pictures
from vaerun.evaluation.results import EvaluationResults
from vaerun.evaluation.samples.sample_validation import SampleValidator
from vaerun.models import AdversarialModel
from vaerun.objectives import Variational
from vaerun.run.build import Model
from vaerun.run.evaluate.adversarial import AdversarialEvaluator
from vaerun.run.evaluate.classifier import check_classifier_cache, dataset_classifier, has_classifier
from vaerun.run.evaluate.likelihood import LikelihoodEvaluator
from vaerun.run.preflight import check_adversarial, check_adversarial_training, check_evaluation
from vaerun.signals import ShutdownSignal
from vaerun.tracking.monitor import Monitor

EVALUATION_BATCH = 500  # images per validation batch; affects results only through rounding


class Validate(Protocol):
    """Computes validation metrics; `selection` names the metric that selects the best parameters, if any."""

    @property
    def selection(self) -> str | None: ...

    def __call__(self) -> dict[str, float]: ...


class LikelihoodFamily:
    """Models with a likelihood, and plain autoencoders."""

    @staticmethod
    def check(settings: Settings, model: Any, data: ImageData) -> None:
        """Raise InputError if the configured evaluation is not possible."""
        check_evaluation(settings.evaluation, model, data)

    @staticmethod
    def check_run(settings: Settings, model: Any, data: ImageData) -> None:
        """The same check before training; also rejects training settings that the family does not support."""
        check_evaluation(settings.evaluation, model, data)

    @staticmethod
    def validator(settings: Settings, objective: Any, data: ImageData, monitor: Monitor) -> Validate | None:
        """Create the validator of the objective's model; None without a validation split."""
        if not len(data.validation):
            return None
        assert isinstance(objective, Variational)
        return Validator(
            objective.model,
            data.validation,
            estimator=objective.estimator,
            samples=objective.samples,
            seed=settings.seed,
            batch_size=EVALUATION_BATCH,
            monitor=monitor,
        )

    @staticmethod
    def evaluate(
        settings: EvaluationSettings, model: Any, data: ImageData, *, seed: int, stop: ShutdownSignal
    ) -> EvaluationResults:
        """Run the configured evaluation."""
        return LikelihoodEvaluator(model, data, settings, seed=seed, stop=stop).evaluate()

    @staticmethod
    def pictures(model: Any, split: Split) -> dict[str, Tensor]:
        """Pictures by name, for logging during training."""
        return likelihood_pictures(model, split)

    @staticmethod
    def data_pictures(model: Any, split: Split) -> dict[str, Tensor]:
        """Those pictures that also show images of the split."""
        return data_and_reconstructions(model, split)


class AdversarialFamily:
    """Adversarial models: a generator and a discriminator."""

    @staticmethod
    def check(settings: Settings, model: Any, data: ImageData) -> None:
        check_adversarial(settings.evaluation, model, data)

    @staticmethod
    def check_run(settings: Settings, model: Any, data: ImageData) -> None:
        check_adversarial(settings.evaluation, model, data)
        check_adversarial_training(settings, data)
        if (settings.evaluation.quality or settings.evaluation.selection is not None) and has_classifier(data):
            check_classifier_cache()

    @staticmethod
    def validator(settings: Settings, objective: Any, data: ImageData, monitor: Monitor) -> Validate | None:
        features = None
        if settings.evaluation.selection is not None:
            features = dataset_classifier(data, monitor)
        return SampleValidator(
            objective.model,
            data.validation if len(data.validation) else data.train,
            threshold=settings.evaluation.diversity,
            features=features,
            seed=settings.seed,
            monitor=monitor,
        )

    @staticmethod
    def evaluate(
        settings: EvaluationSettings, model: Any, data: ImageData, *, seed: int, stop: ShutdownSignal
    ) -> EvaluationResults:
        return AdversarialEvaluator(model, data, settings, seed=seed, stop=stop).evaluate()

    @staticmethod
    def pictures(model: Any, split: Split) -> dict[str, Tensor]:
        return adversarial_pictures(model, split)

    @staticmethod
    def data_pictures(model: Any, split: Split) -> dict[str, Tensor]:
        return data_picture(split)


def family_of(model: Model) -> type[LikelihoodFamily] | type[AdversarialFamily]:
    """The family of a model."""
    return AdversarialFamily if isinstance(model, AdversarialModel) else LikelihoodFamily
