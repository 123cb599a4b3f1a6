"""Settings of a run that can never act, such as early stopping without validation images: one warning line for each.

A setting that is off by default is named wherever it was set; one with a default only if it is on the command line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from vaerun.config.overrides import given_keys, no_effect
from vaerun.config.schema import EvaluationSettings, Settings
from vaerun.data.dataset import ImageData
from vaerun.models import AdversarialModel, LatentModel
from vaerun.run.preflight import uses_amis, uses_observation_model
from vaerun.training import TrainPlan
from vaerun.training.settings import lr_multiplier
from vaerun.training.trainer import MIN_CAPTURED_STEPS

Model = LatentModel | AdversarialModel

TRAINING = (
    *("epochs", "max_steps", "batch_size", "learning_rate", "variance_learning_rate", "betas", "schedule"),
    *("clip_norm", "early_stopping", "log_every", "checkpoint_seconds", "precision", "compile"),
)


def idle_settings(
    settings: Settings, model: Model, data: ImageData, plan: TrainPlan, overrides: Sequence[str]
) -> list[str]:
    """A line for each setting of this run that can never act, with the reason.

    Arguments:
        settings: settings of the run.
        model, data: its model and data set.
        plan: its steps.
        overrides: its KEY=VALUE arguments.
    """
    given = given_keys(overrides)
    lines = [*_idle_model(settings, given)]
    if settings.model.fit == "closed_form":
        names = [f"trainer.{name}" for name in TRAINING] + ["estimator."]
        lines += no_effect(given, names, "model.fit=closed_form does not train")
    else:
        lines += [*_idle_training(settings, data, plan, given)]
    return lines + idle_evaluation(settings.evaluation, model, data, given)


def _idle_model(settings: Settings, given: Sequence[str]) -> Iterator[str]:
    model, trainer = settings.model, settings.trainer
    if model.family == "likelihood" and model.likelihood == "bernoulli":
        for key, value in (
            ("model.fixed_variance", model.fixed_variance),
            (
                "trainer.variance_learning_rate",
                trainer.variance_learning_rate,
            ),
        ):
            if value is not None:
                yield f"{key}={value:g} has no effect: model.likelihood=bernoulli has no variance"
    elif model.fixed_variance is not None and trainer.variance_learning_rate is not None:
        yield "trainer.variance_learning_rate has no effect: model.fixed_variance is not learned"
    if settings.estimator.name == "reconstruction":
        yield from no_effect(given, ["estimator.samples"], "estimator=reconstruction has a single z")
    if model.codes is not None and not model.codes.continuous:
        names = ["model.codes.continuous_weight", "model.codes.continuous_variance"]
        yield from no_effect(given, names, "model.codes.continuous=0")
    if model.codes is not None and not model.codes.categorical:
        yield from no_effect(given, ["model.codes.categorical_weight"], "model.codes.categorical is empty")


def _idle_training(settings: Settings, data: ImageData, plan: TrainPlan, given: Sequence[str]) -> Iterator[str]:
    trainer, estimator, every = settings.trainer, settings.estimator, settings.evaluation.every
    steps, epochs = plan.total_steps, plan.total_steps / plan.steps_per_epoch
    length = f"the run has {epochs:.4g} epochs, {steps} steps"
    validations = math.ceil(epochs / every)
    if trainer.early_stopping is not None:
        if not len(data.validation):
            yield (
                f"trainer.early_stopping={trainer.early_stopping} has no effect: there are no validation images; set "
                "data.validation=0.1, or trainer.early_stopping=null"
            )
        elif trainer.early_stopping > validations - 2:  # the first one is always an improvement
            yield (
                f"trainer.early_stopping={trainer.early_stopping} cannot end the run early: {length}, and validates "
                f"{validations} times"
            )
    if estimator.kl_warmup_epochs and estimator.kl_weight is not None:
        warm = estimator.kl_warmup_epochs * plan.steps_per_epoch
        if not estimator.kl_weight:
            yield "estimator.kl_warmup_epochs has no effect: estimator.kl_weight=0"
        elif warm > steps:
            yield (
                f"estimator.kl_warmup_epochs={estimator.kl_warmup_epochs:g} is longer than the training: {length}, so "
                f"the KL weight ends at {estimator.kl_weight * steps / warm:.3g}, not {estimator.kl_weight:g}"
            )
    full = trainer.epochs * plan.steps_per_epoch
    if trainer.max_steps is not None and trainer.max_steps > full:
        yield f"trainer.max_steps={trainer.max_steps} has no effect: trainer.epochs={trainer.epochs} end after {full}"
    if every > math.ceil(epochs):
        yield f"evaluation.every={every} is longer than the training: {length}, so it validates only at the end"
    for key in ("log_every", "winning_steps"):
        if f"trainer.{key}" in given and getattr(trainer, key) > steps:
            only = ", so metrics are recorded only at the end" if key == "log_every" else ""
            yield f"trainer.{key}={getattr(trainer, key)} is longer than the training: {length}{only}"
    last = (steps - 1) // plan.steps_per_epoch, (steps - 1) / steps
    if trainer.schedule != "constant" and lr_multiplier(trainer.schedule, *last) == 1:
        yield f"trainer.schedule={trainer.schedule} has no effect: {length}, before its first change"
    if trainer.compile == "graph" and steps < MIN_CAPTURED_STEPS:
        yield f"trainer.compile=graph has no effect: {length}, and fewer than {MIN_CAPTURED_STEPS} are not captured"


def idle_evaluation(settings: EvaluationSettings, model: Model, data: ImageData, given: Sequence[str]) -> list[str]:
    """The lines for keys of `evaluation`; `given` are the keys on the command line."""
    s, images = settings, len(getattr(data, settings.split))
    amis = uses_amis(s, model)
    generated = isinstance(model, AdversarialModel) or s.quality or s.inception_weights is not None or s.parzen
    chooses = isinstance(model, AdversarialModel) and model.variance is None and uses_observation_model(s, model)
    annealed = s.ais or s.bdmc or chooses or (amis and s.amis.fallback == "ais")
    traversed = bool(s.interpolation or s.arithmetic)
    off: list[tuple[bool, str, str]] = [
        (amis or s.gaps or s.estimates, "amis.", "evaluation.amis=true switches it on"),
        (annealed, "annealing.", "evaluation.ais=true or evaluation.bdmc=true use it"),
        (annealed and s.annealing.adapt, "annealing.acceptance", "evaluation.annealing.adapt=true uses it"),
        (s.amis.fallback is not None, "amis.fallback_images", "evaluation.amis.fallback=ais uses it"),
        (s.estimates, "estimate.", "evaluation.estimates=true uses it"),
        (s.gaps, "gap.", "evaluation.gaps=true uses it"),
        (s.gradient_noise, "noise.", "evaluation.gradient_noise=true uses it"),
        (generated, "generated.", "evaluation.quality=true uses it"),
        (chooses, "observation.", "evaluation.ais=true uses it if model.fixed_variance=null"),
        (traversed, "sets.", "evaluation.interpolation or evaluation.arithmetic name sets"),
        (traversed and bool(model.classes), "label", "interpolation and arithmetic of conditional models use it"),
        (model.has_density or isinstance(model, AdversarialModel), "samples", "a plain autoencoder has no likelihood"),
        (model.has_density or isinstance(model, AdversarialModel), "latent", "a plain autoencoder has no prior over z"),
    ]
    lines: list[str] = []
    named: list[str] = []
    for acts, name, reason in off:
        if not acts:
            keys = [key for key in given if key not in named]
            lines += no_effect(keys, [f"evaluation.{name}"], reason)
            named += [key for key in keys if key.startswith(f"evaluation.{name}")]
    limits = {f"evaluation.{name}.images": getattr(s, name).images for name in ("amis", "annealing", "estimate", "gap")}
    limits = {key: limit for key, limit in limits.items() if key in given and key not in named}
    for key, limit in ({"evaluation.images": s.images} | limits).items():
        if limit is not None and limit > images:
            lines.append(f"{key}={limit} has no effect: the {s.split} split has {images} images")
    return lines
