"""Build adversarial models and their objective from settings."""

from __future__ import annotations

import math

from vaerun.config.plugins import instantiate
from vaerun.config.schema import ModelSettings, Settings
from vaerun.data.spec import ImageSpec
from vaerun.errors import InputError
from vaerun.estimators import AdversarialLoss
from vaerun.models import AdversarialModel, Codes
from vaerun.objectives import Adversarial, InformationWeights


def build_adversarial_model(settings: ModelSettings, images: ImageSpec, average: bool) -> AdversarialModel:
    """Build the model for these images, initialised from torch's global generator.

    Arguments:
        settings: model settings.
        images: what is to be modelled.
        average: keep a moving average of the generator's parameters.

    Raises InputError if the settings are inconsistent or do not match the images.
    """
    if settings.generator is None or settings.discriminator is None:
        raise InputError(
            f"model={settings.name} needs a generator and a discriminator: use network=gan_mlp or network=dcgan"
        )
    if settings.likelihood != "gaussian":
        raise InputError(
            f"model={settings.name} generates pixels in [0, 1] without noise: set model.likelihood=gaussian"
        )
    if settings.conditional_prior or settings.fit != "gradient":
        raise InputError(f"model={settings.name} takes neither model.conditional_prior nor model.fit=closed_form: omit")
    if images.logit:
        raise InputError(f"model={settings.name} generates pixels in [0, 1]: set data.logit=false")
    codes = None
    if settings.codes is not None:
        if settings.conditional:
            raise InputError(f"model={settings.name} has codes, which stand for labels: set model.conditional=false")
        c = settings.codes
        codes = Codes(c.categorical, c.continuous, variance=c.continuous_variance)
    classes = images.classes if settings.conditional else 0
    size = settings.latent_dim + (0 if codes is None else codes.size)
    shape = images.shape
    return AdversarialModel(
        instantiate(settings.generator, size, shape, classes, package="vaerun.nets", key="model.generator"),
        instantiate(settings.discriminator, shape, classes, package="vaerun.nets", key="model.discriminator"),
        latent_dim=settings.latent_dim,
        image_shape=shape,
        classes=classes,
        codes=codes,
        average=average,
        variance=settings.fixed_variance,
    ).to(images.mean.device)


def build_adversarial_objective(settings: Settings, model: AdversarialModel, estimator: AdversarialLoss) -> Adversarial:
    """Build the objective with its discriminator and generator phases. Raises InputError for invalid code weights."""
    e, t, codes = settings.estimator, settings.trainer, settings.model.codes
    information = None
    if codes is not None:
        for key in ("categorical_weight", "continuous_weight"):
            weight = getattr(codes, key)
            if not 0 <= weight < math.inf:
                raise InputError(f"model.codes.{key} must be a finite number of at least 0, got {weight}")
        information = InformationWeights(categorical=codes.categorical_weight, continuous=codes.continuous_weight)
    return Adversarial(
        model,
        estimator,
        discriminator_steps=e.discriminator_steps or 1,
        r1=e.r1 or 0.0,
        information=information,
        decay=t.average or 0.0,
        winning_steps=t.winning_steps,
    )
