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
from vaerun.data.dataset import one_hot
from vaerun.errors import InputError
from vaerun.memory import reporting_out_of_memory
from vaerun.models import AdversarialModel, LatentModel
from vaerun.randomness import ImageNoise
from vaerun.run.memory_limits import ComputationLimit, MemoryLimitExceeded
from vaerun.text import printable

_EXTRA_BYTES = 2 << 30  # bytes that a tensor of the smoke test may take beyond four times the parameters' size
_IMAGES = 2
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


def smoke_test(model: LatentModel | AdversarialModel, folder: Path) -> None:
    """Pass two images through a model in evaluation mode, without gradients.

    Parameters, running statistics and torch's generators are not changed. The pixels are 0 and 1, which any likelihood
    takes: the data need not be there.

    Raises InputError, which names the run directory, if the model raises an exception, returns wrong shapes, or needs
    far more memory than its parameters.
    """
    parameters = (*model.parameters(), *model.buffers())
    device = parameters[0].device
    parameter_bytes = sum(value.nbytes for value in parameters)
    try:
        with (
            blame_configuration(folder),
            ComputationLimit(4 * parameter_bytes + _EXTRA_BYTES),
            torch.no_grad(),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        ):
            x = torch.zeros(_IMAGES, *model.image_shape, dtype=torch.float32, device=device)
            x[:, :, ::2] = 1
            c = one_hot(torch.tensor([0, model.classes - 1], device=device), model.classes) if model.classes else None
            try:
                _generate(model, x, c) if isinstance(model, AdversarialModel) else _infer(model, x, c)
            except InputError as error:
                raise IncompatibleModel(error) from error
    except MemoryLimitExceeded as error:
        raise InputError(
            f"the model of {folder} needs far more memory for {_IMAGES} images than for its parameters ({error}): "
            "vaerun does not open such runs"
        ) from error


def _infer(model: LatentModel, x: Tensor, c: Tensor | None) -> None:
    joint = model.joint(x, c, ImageNoise(0, range(len(x)), model.latent_dim, x))
    q = model.infer(joint)
    _check("E[x | z]", model.decode_mean(q.centre, c), x.shape)
    if not model.has_density:
        return
    _check("q(z | x)", q.centre, (len(x), model.latent_dim))
    z, log_q = q.transform(torch.zeros(_SAMPLES, len(x), model.latent_dim, dtype=x.dtype, device=x.device))
    _check("log q(z | x)", log_q, (_SAMPLES, len(x)))
    _check("log p(x, z)", joint.log_prob(z), (_SAMPLES, len(x)))
    _check("E[x | z]", model.decode_mean(z, c), (_SAMPLES, *x.shape))


def _generate(model: AdversarialModel, x: Tensor, c: Tensor | None) -> None:
    noise = torch.zeros(_SAMPLES, len(x), model.noise_dim, dtype=x.dtype, device=x.device)
    _check("the generator's output", model.generate(noise, c), (_SAMPLES, *x.shape))
    logit, codes = model.discriminator(2 * x - 1, c)
    _check("the discriminator's output", logit, (len(x),))
    if model.codes is not None and codes is not None:
        _check("Q's output", codes, (len(x), model.codes.parameters))
    model.feature_maps(x, c)


def _check(what: str, value: Tensor, shape: Sequence[int]) -> None:
    if value.shape != torch.Size(shape):
        raise IncompatibleModel(f"{what} has shape {list(value.shape)}, expected {list(shape)}")
