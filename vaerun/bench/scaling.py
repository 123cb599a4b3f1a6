"""Scaling of VLAE's step with each size, and of an evaluation with K: measured against counted operations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from vaerun.bench.case import BenchSettings, Case
from vaerun.bench.evaluation import make_calls
from vaerun.bench.vlae import QUICK, Size, make_step, step_work
from vaerun.bench.vlae import vaerun_loss as loss

BASE = Size((256, 256), 32, (3, 16, 16), 64)


def variations(setting: BenchSettings) -> dict[str, list[tuple[float, Size]]]:
    """Name of the varied size -> its values and all sizes; the others are as in BASE."""
    base = QUICK if setting.quick else BASE
    doubled = (1, 2) if setting.quick else (0.5, 1, 2, 4)
    width, latent, batch = base.hidden[0], base.latent, base.batch

    def shape(factor: float) -> tuple[int, int, int]:
        return (base.shape[0], base.shape[1], int(base.shape[2] * factor))

    return {
        "T": [(t, replace(base, steps=t)) for t in ((1, 2) if setting.quick else (1, 2, 4, 8))],
        "d": [(latent * f, replace(base, latent=int(latent * f))) for f in doubled],
        "H": [(width * f, replace(base, hidden=(int(width * f),) * len(base.hidden))) for f in doubled],
        "D": [(math.prod(shape(f)), replace(base, shape=shape(f))) for f in doubled],
        "B": [(batch * f, replace(base, batch=int(batch * f))) for f in doubled],
    }


def exponent(values: list[float], costs: list[float]) -> float:
    """The slope of log cost against log value, by least squares."""
    x, y = [math.log(v) for v in values], [math.log(c) for c in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def scaling(setting: BenchSettings) -> Iterator[Case]:
    """A case for each of T, d, H, D, B and K, with a variant per value and fitted exponents below the table."""
    for name, sizes in variations(setting).items():
        counted = exponent([value for value, _ in sizes], [step_work(size).flops for _, size in sizes])
        base = QUICK if setting.quick else BASE
        yield Case(
            f"scaling with {name} of the step of {base}",
            "step",
            {
                f"{name}={value:g}": lambda size=size: make_step(loss, size, setting.device)  # type: ignore[misc]
                for value, size in sizes
            },
            notes=[f"exponent in {name} of the operations counted: {counted:.2f}"],
            values=[value for value, _ in sizes],
        )
    samples = [500, 1000] if setting.quick else [625, 1250, 2500, 5000]
    base = QUICK if setting.quick else BASE
    yield Case(
        f"scaling with K of the evaluation of a VAE of {base}",
        "evaluation",
        {f"K={k}": lambda k=k: make_calls(base, k, setting.device)["vaerun"] for k in samples},  # type: ignore[misc]
        notes=["exponent in K of the operations counted: 1.00"],
        values=[float(k) for k in samples],
    )
