"""Importance-weighted log-likelihood of images: vaerun's evaluation against decoding every sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from vaerun.bench.case import Case, Setting, Work
from vaerun.bench.laplace import BIG, QUICK, Size, images
from vaerun.bench.textbook import decode_every_sample
from vaerun.estimators import elbo
from vaerun.evaluation.likelihood.importance import NOISE_BLOCK, default_chunk, importance_statistics
from vaerun.inference import Amortised
from vaerun.models import Gaussian, LatentModel
from vaerun.nets import MLPDecoder, MLPEncoder
from vaerun.randomness import ImageNoise

TRAINED = 100  # steps: log-weights and densities are then of the sizes that a trained model has
IMAGES = {"cpu": 8, "cuda": 128}  # at once: a GPU wants more


@cache  # the forms only read it
def model_and_data(size: Size, device: torch.device) -> tuple[LatentModel, Tensor]:
    """A VAE trained for some steps on the images [B, C, H, W] that are to be evaluated."""
    torch.manual_seed(0)
    x = images(size, torch.Generator().manual_seed(0)).to(device)
    encoder = MLPEncoder(size.shape, hidden=size.hidden)
    decoder = MLPDecoder(size.latent, size.shape, hidden=size.hidden)
    likelihood, inference = Gaussian(float(x.var())), Amortised(encoder, size.latent)
    model = LatentModel(decoder, likelihood, inference, latent_dim=size.latent, mean=x.mean(0).cpu()).to(device)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    for _ in range(TRAINED):
        optimiser.zero_grad()
        joint = model.joint(x)
        (-elbo(joint, model.infer(joint), 1).bound).mean().backward()
        optimiser.step()
    return model, x[: IMAGES[device.type]]


def calls(size: Size, samples: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """Log-likelihoods [B] of the same images from the same samples, in two ways; noise included."""
    model, x = model_and_data(size, device)
    chunk = default_chunk(device)

    def noise() -> ImageNoise:
        return ImageNoise(0, range(len(x)), size.latent, model.mean)

    def own() -> Tensor:
        with torch.no_grad():
            joint = model.joint(x, noise=noise())
            return importance_statistics(joint, model.infer(joint), samples)["log_likelihood"]

    def textbook() -> Tensor:
        with torch.no_grad():
            joint, source = model.joint(x), noise()
            blocks = [source(f"importance/{block}", NOISE_BLOCK) for block in range(-(-samples // NOISE_BLOCK))]
            return decode_every_sample(joint, model.infer(joint), torch.cat(blocks)[:samples], chunk)

    return {"vaerun": own, "decoding every sample": textbook}


def log_likelihood(setting: Setting) -> Iterator[Case]:
    """K = 5000 at the paper's big size on CIFAR-10.

    The floor: each sample goes through the trunk, 2 P operations, and through half of the symmetric G, H^2; log p of a
    decoded sample needs 2 (P + H D).
    """
    size, samples = (QUICK, 20) if setting.quick else (BIG, 5000)
    widths = [size.latent, *size.hidden]
    trunk = sum(m * n for m, n in pairwise(widths))

    def compare() -> dict[str, float]:
        own, textbook = (call() for call in calls(size, samples, setting.device).values())
        return {"largest difference of an image's log p(x), nats": float((own - textbook).abs().max())}

    few = min(IMAGES[setting.device.type], size.batch)
    yield Case(
        f"importance-weighted log p(x), K={samples}, hidden {'x'.join(map(str, size.hidden))}, d={size.latent}, "
        f"{few} images",
        "evaluation",
        {
            form: lambda form=form: calls(size, samples, setting.device)[form]  # type: ignore[misc]
            for form in ("vaerun", "decoding every sample")
        },
        Work(products=float(few * samples * (2 * trunk + widths[-1] ** 2))),
        compare,
        items=few,
        notes=[f"synthetic images, a VAE after {TRAINED} steps on them"],
    )
