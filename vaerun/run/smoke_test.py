"""Smoke test of a model from an untrusted run directory: can it be built, and does it run?

The parts of a model may not fit together although the checkpoint matches each of them. A small batch detects this,
where an evaluation would end in a traceback.
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
from vaerun.memory import reporting_out_of_memory
from vaerun.models import AdversarialModel, LatentModel
from vaerun.randomness import ImageNoise
from vaerun.run.memory_limits import ComputationLimit, MemoryLimitExceeded
from vaerun.text import printable

_EXTRA_BYTES = 2 << 30  # bytes that a tensor of the smoke test may take beyond four times the parameters' size
_SAMPLES = 3  # differs from the number of images, so that swapped axes are detected


class IncompatibleModel(Exception):
    """The model rejects valid inputs or returns wrongly shaped outputs; the message is the reason."""


@contextmanager
def blame_configuration(folder: Path) -> Iterator[None]:
    """Attribute any exception inside the context to the configuration in this directory, or to a lack of memory.

    Raises InputError with a line that names the directory; InputError and MemoryLimitExceeded propagate unchanged.
    """
    shortage = f"memory ran out for the model of {folder}: use a machine with more memory"
    try:
        with reporting_out_of_memory(InputError, shortage):
            yield
    except (InputError, MemoryLimitExceeded):
        raise
    except Exception as error:  # the configuration chooses the parts, which may raise anything
        reason = printable(error if isinstance(error, IncompatibleModel) else describe_error(error), 300)
        raise InputError(
            f"the model of {folder} does not run ({reason}): the parts in its configuration do not fit together"
        ) from error


def smoke_test(model: LatentModel | AdversarialModel, data: ImageData, folder: Path) -> None:
    """Pass two training images through a model in evaluation mode, without gradients.

    Parameters, running statistics and torch's generators are not changed.

    Raises InputError, which names the run directory, if the model raises an exception, returns wrong shapes, or needs
    far more memory than its parameters.
    """
    batch = data.train.batch(0, min(2, len(data.train)))
    device = batch.x.device
    parameter_bytes = sum(value.nbytes for value in (*model.parameters(), *model.buffers()))
    try:
        with (
            blame_configuration(folder),
            ComputationLimit(4 * parameter_bytes + _EXTRA_BYTES),
            torch.no_grad(),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        ):
            try:
                _generate(model, batch) if isinstance(model, AdversarialModel) else _infer(model, batch)
            except InputError as error:
                raise IncompatibleModel(error) from error
    except MemoryLimitExceeded as error:
        raise InputError(
            f"the model of {folder} needs far more memory for {len(batch.x)} images than for its parameters ({error}): "
            "vaerun does not open such runs"
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


def _check(what: str, value: Tensor, shape: Sequence[int]) -> None:
    if value.shape != torch.Size(shape):
        raise IncompatibleModel(f"{what} has shape {list(value.shape)}, expected {list(shape)}")
