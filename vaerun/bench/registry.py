"""All benchmarks by name."""

from __future__ import annotations

from vaerun.bench import command, evaluation, scaling, trainer_steps, vae, vlae
from vaerun.bench.case import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    "vlae": vlae.gaussian,
    "vlae_bernoulli": vlae.bernoulli,
    "evaluation": evaluation.log_likelihood,
    "vae": vae.step,
    "epoch": vae.epoch,
    "startup": command.startup,
    "prepare": command.prepare,
    "scaling": scaling.scaling,
    "steps": trainer_steps.steps,
    "together": trainer_steps.together,
}
