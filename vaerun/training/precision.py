"""The arithmetic of training (trainer.precision). Validation and evaluation are always in float32.

float32: all of it. tf32: matrix products of float32 numbers by the GPU's matrix units, which keep 10 bits of their
mantissas (relative error about 5e-4) and sum in float32. bf16: torch's autocast: the layers' products and activations
in bfloat16 (8 bits, relative error 4e-3); parameters, log-densities, sums and all that the Laplace approximation
factorises stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vaerun.errors import InputError, RunError

PRECISIONS = ("float32", "tf32", "bf16")
# What a lower precision may differ from float32 on the first batch: loss, and norm of the gradient's difference, both
# relative. Sound models stay a factor of ten below.
LIMITS = {"tf32": (1e-3, 0.05), "bf16": (1e-2, 0.3)}


def check_precision(precision: str, device: torch.device) -> None:
    """Raises InputError for one that there is not, or not on this device."""
    if precision not in PRECISIONS:
        raise InputError(f"trainer.precision={precision}: choose one of {', '.join(PRECISIONS)}")
    if precision == "tf32" and not (device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8):
        raise InputError(
            f"trainer.precision=tf32 needs an NVIDIA GPU of compute capability 8.0 or later, and this run is on "
            f"{device}: use trainer.precision=float32"
        )


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Inside, float32 products forward and backward are made as tf32 says, in the whole process: torch has no other."""
    if precision != "tf32":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast(precision: str, device: torch.device) -> Any:
    """A context for the forward pass alone: bf16's autocast."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def differences(
    lower: tuple[Tensor, Sequence[Tensor | None]], exact: tuple[Tensor, Sequence[Tensor | None]]
) -> tuple[float, float]:
    """Relative differences of two (loss, gradients): of the loss, and of the whole gradient by its norm."""
    pairs = [(a, b) for a, b in zip(lower[1], exact[1], strict=True) if a is not None and b is not None]
    off = torch.stack([(a.double() - b.double()).square().sum() for a, b in pairs]).sum().sqrt()
    size = torch.stack([b.double().square().sum() for _, b in pairs]).sum().sqrt()
    loss = (lower[0].double() - exact[0].double()).abs() / exact[0].double().abs().clamp(min=1.0)
    return float(loss), float(off / size.clamp(min=1e-30))


def compare(loss: Any, parameters: list[nn.Parameter], precision: str, device: torch.device) -> dict[str, float]:
    """Loss and gradient of one batch in this precision beside float32's, as relative differences.

    Arguments:
        loss: gives the mean loss of the batch, each time with the same noise.
        parameters: to differentiate by.
        precision: tf32 or bf16.
        device: of the run.

    Raises RunError where they differ by more than rounding explains.
    """
    found = []
    for name in (precision, "float32"):
        with matmul_precision(name):
            with autocast(name, device):
                value = loss()
            found.append((value.detach(), list(torch.autograd.grad(value, parameters, allow_unused=True))))
    of_loss, of_gradient = differences(found[0], found[1])
    most_loss, most_gradient = LIMITS[precision]
    if not (of_loss <= most_loss and of_gradient <= most_gradient):
        raise RunError(
            f"trainer.precision={precision} does not hold for this model: on the first batch the loss differs from "
            f"float32's by {of_loss:.1e} (at most {most_loss:g}) and the gradient by {of_gradient:.1e} (at most "
            f"{most_gradient:g}), relative; use trainer.precision=float32"
        )
    return {"loss": of_loss, "gradient": of_gradient}
