"""Log-likelihoods of the same images: adaptive importance sampling, importance sampling with q, and annealing."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vaerun.bench.case import BenchSettings, Call, Case
from vaerun.bench.vlae import LARGE, QUICK, Size, random_images
from vaerun.data.cache import load_built_in
from vaerun.data.dataset import Split
from vaerun.data.transforms import Transform
from vaerun.estimators import elbo
from vaerun.evaluation.adaptive.adaptation import Amis
from vaerun.evaluation.adaptive.amis import adaptive_importance_sampling
from vaerun.evaluation.likelihood.annealed import Annealing, annealed_importance_sampling
from vaerun.evaluation.likelihood.importance import importance_sampling
from vaerun.inference import Amortised
from vaerun.models import Bernoulli, Gaussian, LatentModel
from vaerun.nets import MLPDecoder, MLPEncoder

TRAINING_STEPS = 1000  # enough for posteriors as sharp and as curved as those of trained models
TRAINING_IMAGES = 20_000
IMAGES = {"cpu": 50, "cuda": 1000}  # a GPU needs more to be busy
ANNEALED_IMAGES = 8  # whose annealed estimates are computed in full, once
SHARE = 50  # the timed annealing has 1 / SHARE of the default temperatures; its time is proportional to their number
SIZES = {
    "cifar10": Size((128,), 16),
    "cifar10 at the paper's large size": LARGE,
    "mnist": Size((500, 500), 50, (1, 28, 28), likelihood="bernoulli"),
}


def _pixels(data: str, size: Size) -> tuple[Tensor, Tensor, str]:
    """Training and test images, uint8 [N, C, H, W], and where they come from."""
    root = os.environ.get("VAERUN_DATA")
    if root and (Path(root) / f"{data}.npz").exists():
        arrays = load_built_in(data)
        assert arrays.test_images is not None
        train, test = (torch.from_numpy(a.copy()) for a in (arrays.train_images[:TRAINING_IMAGES], arrays.test_images))
        source = f"the first {len(train)} training images of {data}"
    else:
        generator = torch.Generator().manual_seed(0)
        pixels = random_images(replace(size, batch=2000, likelihood="gaussian"), generator).mul(255).byte()
        train, test, source = pixels[:1000], pixels[1000:], "synthetic images"
    if size.likelihood == "bernoulli":
        train, test = ((p > 127).byte() * 255 for p in (train, test))
    return train, test, source


@cache  # the variants only read it
def model_and_split(data: str, size: Size, steps: int, device: torch.device) -> tuple[LatentModel, Split, str]:
    """A VAE trained for some steps, the test images, and what it was trained on."""
    train, test, source = _pixels(data, size)
    torch.manual_seed(0)
    images = train.to(device).float() / 255
    encoder, decoder = (
        MLPEncoder(size.shape, hidden=size.hidden),
        MLPDecoder(size.latent, size.shape, hidden=size.hidden),
    )
    likelihood = Bernoulli() if size.likelihood == "bernoulli" else Gaussian(float(images.var()))
    inference = Amortised(encoder, size.latent)
    model = LatentModel(decoder, likelihood, inference, latent_dim=size.latent, mean=images.mean(0).cpu()).to(device)
    rates = {"network": 1e-3, "variance": 1e-2}
    groups = [{"params": parameters, "lr": rates[name]} for name, parameters in model.parameter_groups().items()]
    optimiser = torch.optim.Adam([group for group in groups if group["params"]])
    for _ in range(steps):
        optimiser.zero_grad()
        joint = model.joint(images[torch.randint(len(images), (size.batch,), device=device)])
        (-elbo(joint, model.infer(joint), 1).bound).mean().backward()
        optimiser.step()
    split = Split("test", test.to(device), None, 0, Transform(), size.likelihood == "bernoulli")
    return model.eval(), split, source


def _case(data: str, size: Size, setting: BenchSettings) -> Case:
    quick, name = setting.quick, data.split()[0]
    steps, samples, count = (2, 20, 3) if quick else (TRAINING_STEPS, 5000, IMAGES[setting.device.type])
    amis = Amis(samples=20, starts=2, max_starts=4, rounds=1, max_rounds=2, round_samples=20) if quick else Amis()
    annealing = Annealing(temperatures=SHARE * 2) if quick else Annealing()
    short = replace(annealing, temperatures=annealing.temperatures // SHARE, adapt=False)
    model, split, source = model_and_split(name, size, steps, setting.device)

    def adaptive(images: int = count) -> Tensor:
        return adaptive_importance_sampling(model, split, amis, seed=0, images=images)["amis"]

    def plain(images: int = count) -> Tensor:
        return importance_sampling(model, split, samples=samples, seed=0, images=images)["log_likelihood"]

    def compare() -> dict[str, float]:
        images = min(ANNEALED_IMAGES, count)
        ais = annealed_importance_sampling(model, split, annealing, seed=0, images=images)["ais"]
        where = f"mean over {images} images, nats"
        return {
            f"adaptive importance sampling - AIS ({annealing.temperatures} temperatures), {where}": float(
                (adaptive(images) - ais).mean()
            ),
            f"importance sampling with q - AIS, {where}": float((plain(images) - ais).mean()),
        }

    def annealed() -> Tensor:
        return annealed_importance_sampling(model, split, short, seed=0, images=count)["ais"]

    variants: dict[str, Call] = {
        f"adaptive importance sampling, K={amis.samples}": adaptive,
        f"importance sampling with q, K={samples}": plain,
        f"AIS, {short.temperatures} of {annealing.temperatures} temperatures": annealed,
    }
    return Case(
        f"log p(x), {data}, {size.likelihood}, hidden {'x'.join(map(str, size.hidden))}, d={size.latent}, "
        f"D={math.prod(size.shape)}, {count} images",
        "evaluation",
        {title: lambda call=call: call for title, call in variants.items()},  # type: ignore[misc]
        None,
        compare,
        items=count,
        notes=[f"a VAE, {steps} steps on {source}", f"AIS in full takes {SHARE} times as long as the one timed"],
    )


def adaptive(setting: BenchSettings) -> Iterator[Case]:
    """Adaptive importance sampling at its default settings against K = 5000 samples of q and against annealing."""
    if setting.quick:
        yield _case("synthetic", QUICK, setting)
        return
    for data, size in SIZES.items():
        yield _case(data, size, setting)
