"""Numerical precision of training (trainer.precision). Validation and evaluation always use float32.

float32: float32 throughout. tf32: float32 matrix products on tensor cores, which round inputs to a 10-bit mantissa
(relative error about 5e-4) and accumulate in float32. bf16: torch.autocast, with matrix products and activations in
bfloat16 (8 bits, relative error 4e-3); parameters, log-densities, sums and the matrices factorised by the Laplace
approximation stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vaerun.errors import InputError, RunError

# Maximum relative differences from float32 on the first batch, of the loss and of the gradient (in norm). Healthy
# models stay a factor of ten below.
TOLERANCES = {"tf32": (1e-3, 0.05), "bf16": (1e-2, 0.3)}


def check_precision(precision: str, device: torch.device) -> None:
    """Raise InputError if the device does not support this precision, ValueError for an unknown one."""
    if precision not in ("float32", *TOLERANCES):
        raise ValueError(f"unknown precision {precision!r}")
    if precision == "tf32" and not (device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8):
        raise InputError(
            f"trainer.precision=tf32 needs an NVIDIA GPU of compute capability 8.0 or later, and this run is on "
            f"{device}: use trainer.precision=float32"
        )


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Context that sets the precision of float32 matrix products, which torch only does for the whole process."""
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
    """Context for the forward pass: torch.autocast for bf16, otherwise a no-op."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def relative_differences(
    lower: tuple[Tensor, Sequence[Tensor | None]], exact: tuple[Tensor, Sequence[Tensor | None]]
) -> tuple[float, float]:
    """Relative differences between two pairs (loss, gradients): of the loss, and of the whole gradient in norm."""
    pairs = [(a, b) for a, b in zip(lower[1], exact[1], strict=True) if a is not None and b is not None]
    error = torch.stack([(a.double() - b.double()).square().sum() for a, b in pairs]).sum().sqrt()
    norm = torch.stack([b.double().square().sum() for _, b in pairs]).sum().sqrt()
    loss = (lower[0].double() - exact[0].double()).abs() / exact[0].double().abs().clamp(min=1.0)
    return float(loss), float(error / norm.clamp(min=1e-30))


def compare_with_float32(
    loss: Any, parameters: list[nn.Parameter], precision: str, device: torch.device
) -> dict[str, float]:
    """Relative differences of loss and gradient between this precision and float32 on one batch.

    Arguments:
        loss: returns the mean loss of the batch, with the same noise in every call.
        parameters: parameters to differentiate with respect to.
        precision: tf32 or bf16.
        device: device of the run.

    Raises RunError if the differences are larger than rounding explains.
    """
    results = []
    for name in (precision, "float32"):
        with matmul_precision(name):
            with autocast(name, device):
                value = loss()
            results.append((value.detach(), list(torch.autograd.grad(value, parameters, allow_unused=True))))
    loss_error, gradient_error = relative_differences(results[0], results[1])
    loss_tolerance, gradient_tolerance = TOLERANCES[precision]
    if not (loss_error <= loss_tolerance and gradient_error <= gradient_tolerance):
        raise RunError(
            f"trainer.precision={precision} is too inaccurate for this model: on the first batch the loss differs from "
            f"float32's by {loss_error:.1e} (tolerance {loss_tolerance:g}) and the gradient by {gradient_error:.1e} "
            f"(tolerance {gradient_tolerance:g}), relative; use trainer.precision=float32"
        )
    return {"loss": loss_error, "gradient": gradient_error}
