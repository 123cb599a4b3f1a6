"""How VLAE's step grows with each size, and an evaluation with K: what is timed, beside the operations counted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from vaerun.bench.case import Case, Setting
from vaerun.bench.evaluation import calls
from vaerun.bench.laplace import QUICK, Size, step_of, work
from vaerun.bench.laplace import own_loss as loss

BASE = Size((256, 256), 32, (3, 16, 16), 64)


def variations(setting: Setting) -> dict[str, list[tuple[float, Size]]]:
    """By the name of what varies: its values and the sizes, all else as in BASE."""
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
    """The slope of log cost in log value, by least squares."""
    x, y = [math.log(v) for v in values], [math.log(c) for c in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def scaling(setting: Setting) -> Iterator[Case]:
    """T, d, H, D, B and K in turn: a case each, whose forms are its values; fitted exponents stand below the table."""
    for name, sizes in variations(setting).items():
        counted = exponent([value for value, _ in sizes], [work(size).products for _, size in sizes])
        base = QUICK if setting.quick else BASE
        yield Case(
            f"growth with {name} of the step of {base}",
            "step",
            {
                f"{name}={value:g}": lambda size=size: step_of(loss, size, setting.device)  # type: ignore[misc]
                for value, size in sizes
            },
            notes=[f"exponent in {name} of the operations counted: {counted:.2f}"],
            values=[value for value, _ in sizes],
        )
    samples = [500, 1000] if setting.quick else [625, 1250, 2500, 5000]
    base = QUICK if setting.quick else BASE
    yield Case(
        f"growth with K of the evaluation of a VAE of {base}",
        "evaluation",
        {f"K={k}": lambda k=k: calls(base, k, setting.device)["vaerun"] for k in samples},  # type: ignore[misc]
        notes=["exponent in K of the operations counted: 1.00"],
        values=[float(k) for k in samples],
    )
