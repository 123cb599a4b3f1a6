"""Importance-weighted log-likelihood: vaerun's evaluation against decoding every sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from vaerun.bench.adaptive import adaptive
from vaerun.bench.case import BenchSettings, Case, Work
from vaerun.bench.textbook import decode_every_sample
from vaerun.bench.vlae import LARGE, QUICK, Size, random_images
from vaerun.estimators import elbo
from vaerun.evaluation.likelihood.importance import NOISE_BLOCK, default_chunk, importance_statistics
from vaerun.inference import Amortised
from vaerun.models import Gaussian, LatentModel
from vaerun.nets import MLPDecoder, MLPEncoder
from vaerun.randomness import ImageNoise

TRAINING_STEPS = 100  # enough for realistic log-weights and densities
BATCH_SIZE = {"cpu": 8, "cuda": 128}  # a GPU needs more to be busy


@cache  # the variants only read it
def model_and_data(size: Size, device: torch.device) -> tuple[LatentModel, Tensor]:
    """A VAE trained for TRAINING_STEPS steps, and the images [B, C, H, W] to evaluate."""
    torch.manual_seed(0)
    x = random_images(size, torch.Generator().manual_seed(0)).to(device)
    encoder = MLPEncoder(size.shape, hidden=size.hidden)
    decoder = MLPDecoder(size.latent, size.shape, hidden=size.hidden)
    likelihood, inference = Gaussian(float(x.var())), Amortised(encoder, size.latent)
    model = LatentModel(decoder, likelihood, inference, latent_dim=size.latent, mean=x.mean(0).cpu()).to(device)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    for _ in range(TRAINING_STEPS):
        optimiser.zero_grad()
        joint = model.joint(x)
        (-elbo(joint, model.infer(joint), 1).bound).mean().backward()
        optimiser.step()
    return model, x[: BATCH_SIZE[device.type]]


def make_calls(size: Size, samples: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """Both variants of the log-likelihoods [B] of the same images from the same samples; each call draws its noise."""
    model, x = model_and_data(size, device)
    chunk = default_chunk(device)

    def noise() -> ImageNoise:
        return ImageNoise(0, range(len(x)), size.latent, model.mean)

    def vaerun() -> Tensor:
        with torch.no_grad():
            joint = model.joint(x, noise=noise())
            return importance_statistics(joint, model.infer(joint), samples)["log_likelihood"]

    def textbook() -> Tensor:
        with torch.no_grad():
            joint, source = model.joint(x), noise()
            blocks = [source(f"importance/{block}", NOISE_BLOCK) for block in range(-(-samples // NOISE_BLOCK))]
            return decode_every_sample(joint, model.infer(joint), torch.cat(blocks)[:samples], chunk)

    return {"vaerun": vaerun, "decoding every sample": textbook}


def log_likelihood(setting: BenchSettings) -> Iterator[Case]:
    """K = 5000 at the paper's large size on CIFAR-10.

    The floor: each sample takes 2 P operations in the trunk and H^2 in half of the symmetric G; decoding it would take
    2 (P + H D).
    """
    size, samples = (QUICK, 20) if setting.quick else (LARGE, 5000)
    widths = [size.latent, *size.hidden]
    trunk = sum(m * n for m, n in pairwise(widths))

    def compare() -> dict[str, float]:
        ours, textbook = (call() for call in make_calls(size, samples, setting.device).values())
        return {"largest difference of an image's log p(x), nats": float((ours - textbook).abs().max())}

    count = min(BATCH_SIZE[setting.device.type], size.batch)
    yield Case(
        f"importance-weighted log p(x), K={samples}, hidden {'x'.join(map(str, size.hidden))}, d={size.latent}, "
        f"{count} images",
        "evaluation",
        {
            name: lambda name=name: make_calls(size, samples, setting.device)[name]  # type: ignore[misc]
            for name in ("vaerun", "decoding every sample")
        },
        Work(flops=float(count * samples * (2 * trunk + widths[-1] ** 2))),
        compare,
        items=count,
        notes=[f"synthetic images, a VAE trained on them for {TRAINING_STEPS} steps"],
    )
    yield from adaptive(setting)
