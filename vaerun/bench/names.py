"""All benchmarks by name."""

from __future__ import annotations

from vaerun.bench import command, evaluation, laplace, plain, recorded, scaling
from vaerun.bench.case import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    "vlae": laplace.gaussian,
    "vlae_bernoulli": laplace.bernoulli,
    "evaluation": evaluation.log_likelihood,
    "vae": plain.step,
    "epoch": plain.epoch,
    "startup": command.startup,
    "prepare": command.prepare,
    "scaling": scaling.scaling,
    "steps": recorded.steps,
    "together": recorded.together,
}
