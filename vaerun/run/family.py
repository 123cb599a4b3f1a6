"""What differs between the families of models when they are run: the one place that a new family has to be added to."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from vaerun.config.schema import EvaluationSettings, Settings
from vaerun.data.dataset import ImageData, Split
from vaerun.evaluation import Validator
from vaerun.evaluation.plots import pictures as likelihood_pictures
from vaerun.evaluation.plots.adversarial_pictures import adversarial_pictures
from vaerun.evaluation.results import EvaluationResults
from vaerun.evaluation.samples.sample_validation import SampleValidator
from vaerun.models import AdversarialModel
from vaerun.objectives import Variational
from vaerun.run.build import Model
from vaerun.run.evaluate.adversarial import evaluate_adversarial
from vaerun.run.evaluate.likelihood import evaluate_likelihood
from vaerun.run.evaluate.samples import check_classifier_cache, dataset_classifier, has_classifier
from vaerun.run.preflight import check_adversarial, check_adversarial_training, check_evaluation
from vaerun.signals import ShutdownSignal
from vaerun.tracking.monitor import Monitor

EVALUATION_BATCH = 500  # images per validation batch; no result depends on it beyond rounding


class Validate(Protocol):
    """Metrics of the validation split; `selection` names the one that the best parameters are chosen by, if any."""

    @property
    def selection(self) -> str | None: ...

    def __call__(self) -> dict[str, float]: ...


class LikelihoodFamily:
    """Models with a likelihood (and the plain autoencoder)."""

    @staticmethod
    def check(settings: Settings, model: Any, data: ImageData) -> None:
        """Raises InputError for what cannot be evaluated."""
        check_evaluation(settings, model, data)

    @staticmethod
    def check_run(settings: Settings, model: Any, data: ImageData) -> None:
        """The same, and for what cannot be done while training."""
        check_evaluation(settings, model, data)

    @staticmethod
    def validator(settings: Settings, objective: Any, data: ImageData, monitor: Monitor) -> Validate | None:
        """None without a validation split."""
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
        """Everything that is asked for."""
        return evaluate_likelihood(model, data, settings, seed=seed, stop=stop)

    @staticmethod
    def pictures(model: Any, split: Split) -> dict[str, Tensor]:
        """Grids by name, as training goes on."""
        return likelihood_pictures.likelihood_pictures(model, split)

    @staticmethod
    def data_pictures(model: Any, split: Split) -> dict[str, Tensor]:
        """Those of them that show a split's own images."""
        return likelihood_pictures.data_and_reconstructions(model, split)


class AdversarialFamily:
    """Generator against discriminator."""

    @staticmethod
    def check(settings: Settings, model: Any, data: ImageData) -> None:
        check_adversarial(settings, model, data)

    @staticmethod
    def check_run(settings: Settings, model: Any, data: ImageData) -> None:
        check_adversarial(settings, model, data)
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
        return evaluate_adversarial(model, data, settings, seed=seed, stop=stop)

    @staticmethod
    def pictures(model: Any, split: Split) -> dict[str, Tensor]:
        return adversarial_pictures(model, split)

    @staticmethod
    def data_pictures(model: Any, split: Split) -> dict[str, Tensor]:
        return likelihood_pictures.data_picture(split)


def family_of(model: Model) -> type[LikelihoodFamily] | type[AdversarialFamily]:
    """The model's."""
    return AdversarialFamily if isinstance(model, AdversarialModel) else LikelihoodFamily
