"""Training of a plain VAE: a step against its textbook implementation, an epoch against pythae and a DataLoader."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vaerun.bench.case import BenchSettings, Call, Case, Work
from vaerun.bench.textbook import vae_loss
from vaerun.data.arrays import Arrays
from vaerun.data.dataset import Batch, ImageData
from vaerun.estimators import elbo
from vaerun.inference import Amortised
from vaerun.models import Gaussian, LatentModel
from vaerun.nets import MLPDecoder, MLPEncoder
from vaerun.objectives import Variational
from vaerun.training import Trainer, TrainSettings, make_optimisers
from vaerun.training.finite_guard import FiniteGuard
from vaerun.training.step import update

WORKERS = 2  # worker processes of the DataLoader
LEARNING_RATE = 1e-4


def make_vae(shape: tuple[int, ...], hidden: list[int], latent: int) -> LatentModel:
    """A VAE with pixel variance 1, as in the other implementations."""
    torch.manual_seed(0)
    encoder, decoder = MLPEncoder(shape, hidden=hidden), MLPDecoder(latent, shape, hidden=hidden[::-1])
    inference = Amortised(encoder, latent)
    return LatentModel(decoder, Gaussian(1.0, learned=False), inference, latent_dim=latent, mean=torch.zeros(shape))


def relu_mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers with ReLUs between them."""
    layers: list[nn.Module] = []
    for m, n in pairwise(widths):
        layers += [nn.Linear(m, n), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def make_mlps(pixels: int, hidden: list[int], latent: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder and decoder of the same widths as plain torch modules."""
    torch.manual_seed(0)
    return relu_mlp([pixels, *hidden, 2 * latent]), relu_mlp([latent, *hidden[::-1], pixels])


# -- a step -------------------------------------------------------------------------------------------------------


def vaerun_step(shape: tuple[int, ...], hidden: list[int], latent: int, batch: int, device: torch.device) -> Call:
    """The trainer's step: noise, loss, backward, gradient norm, check for non-finite values, Adam."""
    objective = Variational(make_vae(shape, hidden, latent).to(device), elbo, 1)
    optimisers = make_optimisers(objective.phases, TrainSettings(0, 1, batch, LEARNING_RATE))
    x = torch.rand(batch, *shape, device=device)
    data = Batch(x, None, 0, torch.zeros(batch, device=device), torch.arange(batch))
    guard = FiniteGuard(device)

    def step() -> None:
        loss, metrics = objective.loss("model", 0, data)
        update(optimisers["model"], loss.mean(), metrics, clip_norm=None, guard=guard, step=0)

    return step


def textbook_step(shape: tuple[int, ...], hidden: list[int], latent: int, batch: int, device: torch.device) -> Call:
    """The usual few lines, with the same fused Adam."""
    pixels = int(np.prod(shape))
    encoder, decoder = (part.to(device) for part in make_mlps(pixels, hidden, latent))
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], LEARNING_RATE, fused=True)
    x = torch.rand(batch, pixels, device=device)

    def step() -> None:
        optimiser.zero_grad()
        vae_loss(encoder, decoder, x, torch.randn(batch, latent, device=device)).backward()
        optimiser.step()

    return step


def step_work(pixels: int, hidden: list[int], latent: int, batch: int) -> Work:
    """Minimal work of a step.

    Products: 2 B operations per weight for each of the forward pass, the gradient of the weight and the gradient of the
    layer's input, which the first layer lacks. Memory: Adam reads and writes the parameter and two moments, and reads
    the gradient that backward wrote (8 numbers per weight); images and reconstructions are each accessed three times.
    """
    widths = [pixels, *hidden, 2 * latent]
    encoding = sum(m * n for m, n in pairwise(widths))
    widths = [latent, *hidden[::-1], pixels]
    weights = encoding + sum(m * n for m, n in pairwise(widths))
    return Work(flops=2.0 * batch * (3 * weights - pixels * hidden[0]), bytes=4.0 * (8 * weights + 6 * batch * pixels))


def step(setting: BenchSettings) -> Iterator[Case]:
    """A step at B = 32, 128, 512, two hidden layers of 500 units, d = 50, images of CIFAR-10's size."""
    shape, hidden, latent = ((1, 4, 4), [12, 10], 3) if setting.quick else ((3, 32, 32), [500, 500], 50)
    pixels = int(np.prod(shape))
    for batch in (8,) if setting.quick else (32, 128, 512):
        size = (shape, hidden, latent, batch, setting.device)
        yield Case(
            f"VAE step, hidden {'x'.join(map(str, hidden))}, d={latent}, D={pixels}, B={batch}",
            "step",
            {"vaerun": lambda size=size: vaerun_step(*size), "textbook": lambda size=size: textbook_step(*size)},  # type: ignore[misc]
            step_work(pixels, hidden, latent, batch),
            items=batch,
        )


# -- an epoch -----------------------------------------------------------------------------------------------------


def random_images(shape: tuple[int, ...], n: int) -> np.ndarray:
    """uint8 [N, C, H, W]; the values do not affect speed."""
    return np.random.RandomState(0).randint(0, 256, (n, *shape), dtype=np.uint8)


def vaerun_epoch(images: np.ndarray, hidden: list[int], latent: int, batch: int, device: torch.device) -> Call:
    """The trainer itself, without validation, logging and checkpoints."""
    arrays = Arrays(images, None, images[:1], None, "synthetic")
    data = ImageData("synthetic", arrays, validation=0, device=device)
    objective = Variational(make_vae(data.image_shape, hidden, latent).to(device), elbo, 1)
    settings = TrainSettings(0, 1, batch, LEARNING_RATE)
    plan = settings.plan(len(data.train))

    def epoch() -> None:
        Trainer(objective, data.train, settings, plan).train()

    return epoch


def textbook_epoch(
    images: np.ndarray, hidden: list[int], latent: int, batch: int, device: torch.device, workers: int = WORKERS
) -> Call:
    """A DataLoader with worker processes over a TensorDataset of uint8 images, scaled to [0, 1] in the loop."""
    pixels = int(np.prod(images.shape[1:]))
    encoder, decoder = (part.to(device) for part in make_mlps(pixels, hidden, latent))
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], LEARNING_RATE, fused=True)
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(images))
    loader = torch.utils.data.DataLoader(dataset, batch, shuffle=True, num_workers=workers)

    def epoch() -> None:
        for (part,) in loader:
            x = part.to(device).flatten(1) / 255
            optimiser.zero_grad()
            vae_loss(encoder, decoder, x, torch.randn(len(x), latent, device=device)).backward()
            optimiser.step()

    return epoch


def pythae_epoch(images: np.ndarray, hidden: list[int], latent: int, batch: int, device: torch.device) -> Call:
    """pythae's BaseTrainer with default settings on its VAE with these networks; one pass of its loader per call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pythae.data.datasets import BaseDataset
        from pythae.models import VAE, VAEConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder
        from pythae.trainers import BaseTrainer, BaseTrainerConfig

    shape = images.shape[1:]
    encoder, decoder = make_mlps(int(np.prod(shape)), hidden, latent)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = encoder

        def forward(self, x: Tensor) -> Any:
            mean, log_variance = self.network(x.flatten(1)).chunk(2, dim=-1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = decoder

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.network(z).unflatten(-1, shape))

    model = VAE(VAEConfig(input_dim=shape, latent_dim=latent, reconstruction_loss="mse"), Encoder(), Decoder())
    dataset = BaseDataset(torch.from_numpy(images).float() / 255, torch.zeros(len(images)))
    folder = tempfile.TemporaryDirectory(prefix="vaerun-bench-")
    config = BaseTrainerConfig(
        output_dir=folder.name,
        per_device_train_batch_size=batch,
        num_epochs=1,
        learning_rate=LEARNING_RATE,
        optimizer_cls="Adam",  # as pythae creates it: torch's default, not fused
        no_cuda=device.type != "cuda",
    )
    logging.disable(logging.WARNING)  # its loggers have handlers and levels of their own
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        trainer = BaseTrainer(model, dataset, training_config=config)
        trainer.prepare_training()
    logging.disable(logging.NOTSET)
    trainer.callback_handler.callbacks.clear()  # they print progress bars
    trainer.bench_folder = folder  # deleted with the trainer

    return lambda: trainer.train_step(1)


def epoch(setting: BenchSettings) -> Iterator[Case]:
    """A pass through a fifth of MNIST's and CIFAR-10's number of images, B = 128, with two network sizes."""
    quick = setting.quick
    networks = [([12, 10], 3)] if quick else [([256], 16), ([500, 500], 50)]
    for name, shape, total in (("MNIST", (1, 28, 28), 60_000), ("CIFAR-10", (3, 32, 32), 50_000)):
        images = random_images((1, 4, 4) if quick else shape, 64 if quick else total // 5)
        for hidden, latent in networks:
            yield epoch_case(name, images, hidden, latent, 16 if quick else 128, setting.device)


def epoch_case(name: str, images: np.ndarray, hidden: list[int], latent: int, batch: int, device: torch.device) -> Case:
    """A pass through these images [N, C, H, W], which have the shape of the data set `name`."""
    size = (images, hidden, latent, batch, device)
    makers: dict[str, Callable[..., Call]] = {"vaerun": vaerun_epoch, f"DataLoader, {WORKERS} workers": textbook_epoch}
    notes = []
    if importlib.util.find_spec("pythae") is None:
        notes.append("pythae is not installed: pip install 'vaerun[bench]'")
    else:
        makers["pythae"] = pythae_epoch
    per_step = step_work(int(np.prod(images.shape[1:])), hidden, latent, batch)
    steps, layers = len(images) / batch, "x".join(map(str, hidden))
    return Case(
        f"epoch of {len(images)} images of {name}'s shape, VAE, hidden {layers}, d={latent}, B={batch}",
        "epoch",
        {form: lambda maker=maker: maker(*size) for form, maker in makers.items()},  # type: ignore[misc]
        Work(flops=per_step.flops * steps, bytes=per_step.bytes * steps),
        items=len(images),
        notes=notes,
        memory=False,
    )
