"""Whether a model that somebody sent can be put together, and runs at all.

Parts in one another's place can be made, and the tensors of a checkpoint that was made with them fit, though no image
ever goes through them. One small trial finds it, in place of a traceback in the midst of an evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from vaerun.config.plugins import describe_error
from vaerun.data.dataset import Batch, ImageData
from vaerun.errors import InputError
from vaerun.evaluation.oom import is_out_of_memory
from vaerun.models import AdversarialModel, LatentModel
from vaerun.randomness import ImageNoise
from vaerun.run.memory_limits import ComputationLimit, MemoryLimitExceeded
from vaerun.text import printable

_EXTRA_BYTES = 2 << 30  # bytes that one tensor of the trial may take beyond four times the parameters
_SAMPLES = 3  # other than the number of images: axes in one another's place are not of one length


class IncompatibleModel(Exception):
    """A model refuses what every model of its family takes, or gives what none gives; the message is the cause."""


@contextmanager
def blame_configuration(folder: Path) -> Iterator[None]:
    """Whatever is raised inside is the fault of the configuration in this directory, or of too little memory.

    Raises InputError in one line, which names the directory; InputError and TooLarge are let through.
    """
    try:
        yield
    except (InputError, MemoryLimitExceeded):
        raise
    except Exception as error:  # whoever chooses the parts can make them raise anything
        if is_out_of_memory(error):
            raise InputError(f"memory ran out for the model of {folder}: it needs a machine with more") from error
        why = printable(error if isinstance(error, IncompatibleModel) else describe_error(error), 300)
        raise InputError(
            f"the model of {folder} does not run ({why}): the parts that its configuration names do not go together"
        ) from error


def smoke_test(model: LatentModel | AdversarialModel, data: ImageData, folder: Path) -> None:
    """Put two training images through a model in evaluation mode, without a gradient and without any trace.

    Neither parameters, running statistics nor torch's generators are changed.

    Raises InputError, which names the run's directory, where that raises anything, gives what is of another shape, or
    takes far more memory than the parameters do.
    """
    batch = data.train.batch(0, min(2, len(data.train)))
    device = batch.x.device
    held = sum(value.nbytes for value in (*model.parameters(), *model.buffers()))
    try:
        with (
            blame_configuration(folder),
            ComputationLimit(4 * held + _EXTRA_BYTES),
            torch.no_grad(),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        ):
            try:
                _generate(model, batch) if isinstance(model, AdversarialModel) else _infer(model, batch)
            except InputError as error:
                raise IncompatibleModel(error) from error
    except MemoryLimitExceeded as error:
        raise InputError(
            f"the model of {folder} takes far more memory for {len(batch.x)} images than its parameters do ({error}): "
            "vaerun opens none such"
        ) from error


def _infer(model: LatentModel, batch: Batch) -> None:
    count, c = len(batch.x), batch.c if model.classes else None
    joint = model.joint(batch.x, c, ImageNoise(0, range(count), model.latent_dim, batch.x))
    q = model.infer(joint)
    _check("E[x | z]", model.decode_mean(q.centre, c), batch.x.shape)
    if not model.has_density:
        return
    _check("q(z | x)", q.centre, (count, model.latent_dim))
    z, log_q = q.transform(torch.zeros(_SAMPLES, count, model.latent_dim, dtype=batch.x.dtype, device=batch.x.device))
    _check("log q(z | x)", log_q, (_SAMPLES, count))
    _check("log p(x, z)", joint.log_prob(z), (_SAMPLES, count))
    _check("E[x | z]", model.decode_mean(z, c), (_SAMPLES, *batch.x.shape))


def _generate(model: AdversarialModel, batch: Batch) -> None:
    c = batch.c if model.classes else None
    noise = torch.zeros(_SAMPLES, len(batch.x), model.noise_dim, dtype=batch.x.dtype, device=batch.x.device)
    _check("the generator's output", model.generate(noise, c), (_SAMPLES, *batch.x.shape))
    logit, codes = model.discriminator(2 * batch.x - 1, c)
    _check("the discriminator's output", logit, (len(batch.x),))
    if model.codes is not None and codes is not None:
        _check("Q's output", codes, (len(batch.x), model.codes.parameters))
    model.feature_maps(batch.x, c)


def _check(what: str, found: Tensor, shape: Sequence[int]) -> None:
    if found.shape != torch.Size(shape):
        raise IncompatibleModel(f"{what} is of shape {list(found.shape)} where it should be {list(shape)}")
