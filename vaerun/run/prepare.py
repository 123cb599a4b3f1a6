"""Builds and tests the parts of a run without writing to disk; used by the run itself and before a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vaerun.config.schema import Settings
from vaerun.data.dataset import ImageData
from vaerun.defaults import own_defaults
from vaerun.distributed.process_group import check_splittable
from vaerun.errors import InputError
from vaerun.memory import reporting_out_of_memory
from vaerun.objectives import Adversarial, Variational
from vaerun.randomness import derive_seed
from vaerun.run.build import Model, build_model, build_objective, check_classes, dry_run, train_settings
from vaerun.run.family import AdversarialFamily, LikelihoodFamily, family_of
from vaerun.run.idle import idle_settings
from vaerun.training import TrainPlan, TrainSettings
from vaerun.training.determinism import reporting_nondeterminism


@dataclass(frozen=True)
class Parts:
    """The parts of a run.

    Attributes:
        model, objective: on the device of the data.
        family: the model's family, see vaerun.run.family.
        train_settings, plan: arguments of the trainer.
        idle: a warning line for each setting that can never act.
    """

    model: Model
    objective: Variational | Adversarial
    family: type[LikelihoodFamily] | type[AdversarialFamily]
    train_settings: TrainSettings
    plan: TrainPlan
    idle: list[str]


@own_defaults()
def prepare(settings: Settings, data: ImageData, overrides: Sequence[str] = ()) -> Parts:
    """Build model and objective for this data, initialised from the seed, and test them on two images.

    Arguments:
        settings: settings of the run.
        data: its data set.
        overrides: its KEY=VALUE arguments, to warn of those that can never act.

    Raises InputError for invalid settings.
    """
    torch.manual_seed(derive_seed(settings.seed, "initialisation"))
    images = len(data.train)
    check_classes(settings.model, data)
    too_large = "the model does not fit into memory: lower model.latent_dim or the layers' widths"
    with reporting_out_of_memory(InputError, too_large):
        model = build_model(settings.model, data.spec, bool(settings.trainer.average))
        objective = build_objective(settings, model, images)
    family = family_of(model)
    family.check_run(settings, model, data)
    samples = settings.estimator.samples
    lower = f"estimator.samples={samples}, or the model's size" if samples > 1 else "the model's size"
    with (
        reporting_nondeterminism(InputError),
        reporting_out_of_memory(InputError, f"memory ran out for two images at once: lower {lower}"),
    ):
        dry_run(settings.model, objective, data, settings.trainer.batch_size)
    check_splittable(objective, data.train, settings.trainer.processes)
    trainer = train_settings(settings)
    closed_form = settings.model.fit == "closed_form"
    plan = TrainPlan(images, trainer.batch_size, total_steps=0) if closed_form else trainer.plan(images)
    return Parts(model, objective, family, trainer, plan, idle_settings(settings, model, data, plan, overrides))
