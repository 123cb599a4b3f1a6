"""Build the parts of a run from its settings: device, data, model, estimator, objective."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vaerun.config.plugins import bind, check_options, group_file, instantiate, resolve
from vaerun.config.schema import DataSettings, EstimatorSettings, ModelSettings, Settings
from vaerun.data import cache, sources
from vaerun.data.dataset import ImageData, shorten
from vaerun.data.spec import ImageSpec
from vaerun.data.transforms import Transform
from vaerun.errors import InputError
from vaerun.estimators import AdversarialLoss, Estimator
from vaerun.memory import reporting_out_of_memory
from vaerun.models import AdversarialModel, Bernoulli, Gaussian, LatentModel, ppca
from vaerun.objectives import Adversarial, KLWarmup, Variational
from vaerun.run.build_adversarial import build_adversarial_model, build_adversarial_objective
from vaerun.storage.yaml_files import read_yaml
from vaerun.training import TrainSettings

Model = LatentModel | AdversarialModel

MAX_CLASSES = 10_000  # more are probably identifiers, not classes


def resolve_device(name: str) -> torch.device:
    """The device that trainer.device selects. Raises InputError if it is not available."""
    if name == "auto":
        # auto never selects Apple's GPUs, which lack float64, used to sum log-likelihoods.
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"trainer.device={name} is not a device: use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"trainer.device={name}: this machine has {torch.cuda.device_count()} CUDA devices; use trainer.device=cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("trainer.device=mps: this machine has no Apple GPU; use trainer.device=cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"trainer.device={name} is not supported: use auto, cpu, cuda, cuda:N or mps")
    return device


@reporting_out_of_memory(InputError, "memory ran out while reading the data set: use a machine with more memory")
def build_data(settings: DataSettings, device: torch.device) -> ImageData:
    """Load the data set onto the device."""
    transform = Transform(settings.binarize, settings.dequantize, settings.logit)
    source = settings.source
    options = {k: v for k, v in source.items() if k not in ("_target_", "path") and v is not None}
    function = resolve(source.get("_target_", ""), "vaerun.data.sources")
    path = {} if settings.path is None else {"path": settings.path}
    check_options(function, "data.source", source, (Path(),), options | path, True)
    if settings.path is not None:
        function = partial(function, path=settings.path)
    arrays = cache.load_arrays(
        settings.name,
        function,
        root=settings.root,
        path=settings.path,
        options=options,
        # Cache only if the key would reveal an outdated copy: a user's function may return different arrays each time.
        cached=settings.path is not None or (settings.name in sources.BUILT_IN and settings.name != "digits"),
    )
    return ImageData(
        settings.name,
        arrays,
        validation=settings.validation,
        train_images=settings.train_images,
        transform=transform,
        device=device,
    )


def check_classes(settings: ModelSettings, data: ImageData) -> None:
    """Raise InputError for labels that a conditional model cannot learn from."""
    if not settings.conditional:
        return
    conditional = f"model={settings.name} is conditional on the label, and "
    if not data.classes:
        raise InputError(f"{conditional}{data.no_labels}: add labels, or set model.conditional=false")
    if data.classes > MAX_CLASSES:
        raise InputError(
            f"{conditional}{data.name} has {data.classes} classes, more than {MAX_CLASSES}: are they identifiers? "
            "Label images by their class, or set model.conditional=false"
        )
    if data.unseen_classes:
        raise InputError(
            f"{conditional}none of the {len(data.train)} training images of {data.name} is of class "
            f"{shorten(data.unseen_classes)}: train on such images, remove the others of this class, or set "
            "model.conditional=false"
        )


def build_model(settings: ModelSettings, images: ImageSpec, average: bool = False) -> Model:
    """Build the model for these images, initialised from torch's global generator.

    Arguments:
        settings: model settings.
        images: what is to be modelled.
        average: keep a moving average of the generator's parameters (adversarial models).

    Raises InputError if the settings are inconsistent or do not match the images.
    """
    if settings.family == "adversarial":
        return build_adversarial_model(settings, images, average)
    if settings.decoder is None or settings.inference is None:
        raise InputError(f"model={settings.name} needs an encoder and a decoder: use network=mlp or network=conv")
    if settings.codes is not None:
        raise InputError(f"model.codes is for adversarial models, which model={settings.name} is not: omit it")
    if settings.conditional_prior and not settings.conditional:
        raise InputError("model.conditional_prior=true needs model.conditional=true: set it, or omit both")
    if settings.likelihood == "bernoulli" and not images.binary:
        raise InputError(
            f"model.likelihood=bernoulli needs binary pixels, and those of {images.name} are not: set "
            "data.binarize=dynamic (or fixed), or model.likelihood=gaussian"
        )
    classes = images.classes if settings.conditional else 0
    likelihood = (
        Bernoulli()
        if settings.likelihood == "bernoulli"
        else Gaussian(settings.fixed_variance or images.variance, learned=settings.fixed_variance is None)
    )
    shape, d = images.shape, settings.latent_dim
    encoder = None
    if settings.encoder is not None:
        encoder = instantiate(settings.encoder, shape, classes, package="vaerun.nets", key="model.encoder")
    inference = instantiate(settings.inference, encoder, d, package="vaerun.inference", key="model.inference")
    return LatentModel(
        instantiate(settings.decoder, d, shape, classes, package="vaerun.nets", key="model.decoder"),
        likelihood,
        inference,
        latent_dim=d,
        mean=images.mean,
        classes=classes,
        conditional_prior=settings.conditional_prior,
    ).to(images.mean.device)


def build_objective(settings: Settings, model: Model, images: int) -> Variational | Adversarial:
    """Build the objective from the model and the configured estimator.

    Arguments:
        settings: settings of the run.
        model: model to train.
        images: number of training images, to convert epochs to steps.

    Raises InputError for an estimator of another model family, and for incompatible options.
    """
    e, t = settings.estimator, settings.trainer
    estimator = build_estimator(e)
    if isinstance(model, AdversarialModel):
        if not isinstance(estimator, AdversarialLoss):
            raise InputError(
                f"estimator={e.name} needs a likelihood, and model={settings.model.name} is adversarial: use "
                "estimator=gan_nonsaturating or estimator=gan_minimax"
            )
        return build_adversarial_objective(settings, model, estimator)
    if isinstance(estimator, AdversarialLoss):
        raise InputError(
            f"estimator={e.name} is for adversarial models, which model={settings.model.name} is not: "
            f"use estimator={'elbo_mc' if model.has_density else 'reconstruction'}"
        )
    for key in ("average", "discriminator_learning_rate", "discriminator_betas"):
        if getattr(t, key) is not None and not (key == "average" and not t.average):
            raise InputError(f"trainer.{key} is for adversarial models: set trainer.{key}=null, or use trainer=default")
    for key in ("discriminator_steps", "r1"):
        if getattr(e, key) is not None:
            raise InputError(
                f"estimator.{key} is for adversarial models, which model={settings.model.name} is not: omit it"
            )
    warm_up = None
    if e.kl_warmup_epochs:
        if e.kl_weight is None:
            raise InputError(f"estimator.kl_warmup_epochs: estimator={e.name} has no KL weight: omit it")
        steps = e.kl_warmup_epochs * math.ceil(images / t.batch_size)
        if not steps < 2**63:
            raise InputError(f"estimator.kl_warmup_epochs={e.kl_warmup_epochs:g} has more steps than an int64 can hold")
        warm_up = KLWarmup(e.kl_weight, math.ceil(steps))
    return Variational(model, estimator, e.samples, warm_up)


def build_estimator(settings: EstimatorSettings) -> Estimator | AdversarialLoss:
    """Bind the options of `estimator.function`. Raises InputError for options that it does not take."""
    options = {k: getattr(settings, k) for k in ("alpha", "control_variate", "kl_weight", "free_bits")}
    options["label_smoothing"] = settings.label_smoothing
    options = {k: v for k, v in options.items() if v is not None}
    return bind(dict(settings.function) | options, "vaerun.estimators", f"estimator={settings.name}")


def estimators_by_name(names: list[str]) -> dict[str, Any]:
    """Build the named choices of the config group `estimator`.

    NAME/VALUE also sets alpha or control_variate, e.g. renyi/0.5 or score_function/none. Raises InputError for unknown
    choices and values.
    """
    if not names:
        raise InputError("evaluation.noise.estimators is empty: name some, such as [elbo_mc,score_function]")
    estimators = {}
    for entry in names:
        name, slash, value = entry.partition("/")
        choice = read_yaml(group_file("estimator", name))
        option = next((k for k in ("alpha", "control_variate") if k in choice), None)
        if slash and (option is None or not value):
            reason = "has no option to set" if option is None else f"needs a value of {option} after the slash"
            raise InputError(f"evaluation.noise.estimators: {entry}: estimator={name} {reason}")
        try:
            settings = EstimatorSettings(**choice)
            if value and option == "alpha":
                settings.alpha = float(value)
            elif value:
                settings.control_variate = value
            estimators[entry] = build_estimator(settings)
            if isinstance(estimators[entry], AdversarialLoss):
                raise InputError("it is for adversarial models")
        except (TypeError, ValueError) as error:  # an InputError is a ValueError
            raise InputError(f"evaluation.noise.estimators: {entry}: {error}") from error
    return estimators


def train_settings(settings: Settings) -> TrainSettings:
    """The trainer's settings as plain values."""
    trainer = asdict(settings.trainer)
    values = {f.name: trainer[f.name] for f in fields(TrainSettings) if f.name in trainer}
    for key in ("betas", "discriminator_betas"):
        values[key] = values[key] and tuple(values[key])
    return TrainSettings(seed=settings.seed, validate_every=settings.evaluation.every, **values)


def dry_run(
    settings: ModelSettings, objective: Variational | Adversarial, data: ImageData, batch_size: int = 128
) -> None:
    """Compute the loss of two images, to reject unworkable settings before anything is written."""
    if settings.fit == "closed_form" and isinstance(objective, Variational):
        ppca.check_closed_form(objective.model, len(data.train))
    smallest = len(data.train) % batch_size or batch_size
    if smallest == 1 and any(isinstance(m, torch.nn.BatchNorm1d) for m in objective.modules()):
        raise InputError(
            f"trainer.batch_size={batch_size} leaves a single image (of {len(data.train)}) for the last batch of an "
            "epoch, and batch normalisation needs two: choose another batch size"
        )
    state = torch.get_rng_state()
    objective.eval()
    with torch.no_grad():
        for phase in objective.phases:
            objective.loss(phase, 0, data.train.batch(0, min(2, len(data.train))))
    objective.train()
    torch.set_rng_state(state)
