"""Importance-weighted log-likelihood: vaerun's fast path against decoding every sample, interleaved in one run.

    python scripts/bench_importance.py outputs/cifar10/vae/...   # a run whose decoder ends in an affine map

Both weigh the same samples of the same images with the same model; the second one's joint decodes every sample to D
pixels. What is timed is all of `importance_sampling`: inference, noise, densities, weights. The values are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch

import vaerun
from vaerun.evaluation import importance_sampling
from vaerun.models import Joint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--samples", type=int, default=5000, help="K")
    parser.add_argument("--images", type=int, default=16, help="the first so many test images")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved pairs, at least 5")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.rounds < 5:
        parser.error("--rounds must be at least 5")
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*is deprecated")
    run = vaerun.load_run(options.run, options.device)
    if not run.model.joint(run.data.test.batch(0, 1).x).has_gram:
        parser.error(
            f"{options.run}: this model has no fast path (its likelihood is not Gaussian, or its decoder conv)"
        )

    def weigh(fast: bool) -> tuple[float, torch.Tensor]:
        started = time.perf_counter()
        never = mock.patch.object(Joint, "_gram_pays", return_value=False)
        with nullcontext() if fast else never:
            values = importance_sampling(
                run.model, run.data.test, samples=options.samples, seed=0, images=options.images
            )
        return time.perf_counter() - started, values["log_likelihood"]

    forms = {"fast path": True, "decoding every sample": False}
    times: dict[str, list[float]] = {name: [] for name in forms}
    values = {name: weigh(fast)[1] for name, fast in forms.items()}  # not timed: first calls
    for _ in range(options.rounds):
        for name, fast in forms.items():
            times[name].append(weigh(fast)[0])
    ratios = [slow / fast for fast, slow in zip(*times.values(), strict=True)]
    difference = float((values["fast path"] - values["decoding every sample"]).abs().max())

    decoder = run.config.model.decoder.get("hidden")
    dims, d = run.data.dimensions, run.model.latent_dim
    print(
        f"log p(x) of {options.images} test images of {run.data.name} (D={dims}), K={options.samples}, "
        f"decoder {decoder}, d={d}, {run.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for name, found in times.items():
        rates = sorted(options.images / t for t in found)
        print(f"{name:<22} median {statistics.median(rates):.2f} images/s   from {rates[0]:.2f} to {rates[-1]:.2f}")
    print(
        f"ratio of pairs         median {statistics.median(ratios):.2f}   from {min(ratios):.2f} to {max(ratios):.2f}"
    )
    print(f"largest difference of an image's log-likelihood: {difference:.5f} nats")
    if options.json is not None:
        figures = {"times_s": times, "ratios": ratios, "difference_nats": difference}
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
