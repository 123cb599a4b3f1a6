"""A run's parts, built and tried out without a trace on the disk: by the run itself, and ahead of a sweep."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from vaerun.config.settings import Settings, fingerprint
from vaerun.data.dataset import ImageData
from vaerun.distributed import process_group as parallel
from vaerun.errors import InputError
from vaerun.evaluation.oom import running_out
from vaerun.objectives import Adversarial, Variational
from vaerun.randomness import derive_seed
from vaerun.run.build import Model, build_model, build_objective, train_settings, try_out
from vaerun.run.family import family_of
from vaerun.training.determinism import named_operations


@dataclass(frozen=True)
class Prepared:
    """What a run is made of.

    Attributes:
        data, model, objective: on the device.
        identity: the run's fingerprint.
        total_steps: of training; 0 where the model is fitted in closed form.
    """

    data: ImageData
    model: Model
    objective: Variational | Adversarial
    identity: str
    total_steps: int


def prepare(settings: Settings, data: ImageData) -> Prepared:
    """Model and objective for this data, initialised by the seed, after one loss on two images.

    Raises InputError for whatever of these settings cannot work, before anything is written.
    """
    torch.manual_seed(derive_seed(settings.seed, "initialisation"))
    with running_out(InputError, "the model does not fit into memory: lower model.latent_dim or the layers' widths"):
        model = build_model(settings.model, data, bool(settings.trainer.average))
        objective = build_objective(settings, model, len(data.train))
    family_of(model).check_run(settings, model, data)
    samples = settings.estimator.samples
    lower = f"estimator.samples={samples}, or the model's size" if samples > 1 else "the model's size"
    with named_operations(InputError), running_out(InputError, f"memory ran out for two images at once: lower {lower}"):
        try_out(settings.model, objective, data, settings.trainer.batch_size)
    parallel.check_splittable(objective, data.train, settings.trainer.processes)
    closed_form = settings.model.fit == "closed_form"
    steps = 0 if closed_form else train_settings(settings).total_steps(len(data.train))
    return Prepared(data, model, objective, fingerprint(asdict(settings), data.sha256), steps)
