"""Small adversarial models, batches of noise for images, and training of anything that has phases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import torch
from torch import Tensor, nn

from vaerun.data.dataset import Batch, Split
from vaerun.data.transforms import Transform
from vaerun.estimators import NonSaturating
from vaerun.models import AdversarialModel, Codes
from vaerun.nets import ConvDiscriminator, ConvGenerator, MLPDiscriminator, MLPGenerator
from vaerun.objectives import Adversarial, Phase
from vaerun.objectives.base import Diagnostics
from vaerun.signals import ShutdownSignal
from vaerun.storage.checkpoint import CheckpointManager
from vaerun.tracking.logger import RunLogger
from vaerun.training import Hooks, Trainer, TrainSettings

LATENT = 3


def make_model(
    kind: str = "mlp",
    *,
    shape: tuple[int, int, int] = (1, 16, 16),
    classes: int = 0,
    codes: Codes | None = None,
    average: bool = False,
    **discriminator: Any,
) -> AdversarialModel:
    """`kind`: mlp or conv; the rest are options of the discriminator, `dense` of both.

    16x16 pixels give two levels of convolutions.
    """
    size = LATENT + (0 if codes is None else codes.size)
    generator: nn.Module
    trunk: nn.Module
    if kind == "mlp":
        generator = MLPGenerator(size, shape, classes, hidden=[6])
        trunk = MLPDiscriminator(shape, classes, hidden=[6, 5], **discriminator)
    else:
        dense = discriminator.get("dense", ())
        generator = ConvGenerator(size, shape, classes, width=2, dense=dense)
        trunk = ConvDiscriminator(shape, classes, width=2, **discriminator)
    rest: dict[str, Any] = {"latent_dim": LATENT, "image_shape": shape, "classes": classes, "codes": codes}
    model = AdversarialModel(generator, trunk, average=average, **rest)
    with torch.no_grad():  # DCGAN's weights are so small that everything would be near zero
        for module in (model.generator, model.discriminator):
            for p in module.parameters():
                p.add_(0.3 * torch.randn_like(p))
    if model.average is not None:
        model.average.load_state_dict(model.generator.state_dict())
    return model


# Each with the options that go together: what trains in one phase must hold for every member.
MEMBERS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "mlp spectral conditional": {"classes": 3, "spectral_norm": True},
    "dcgan": {"kind": "conv", "average": True},
    "dcgan spectral without norm": {"kind": "conv", "spectral_norm": True, "batch_norm": False},
    "conditional dcgan": {"kind": "conv", "classes": 3},
    "infogan": {"kind": "conv", "codes": Codes([3, 2], 2), "dense": [7], "average": True},
    "infogan spectral": {
        "kind": "conv",
        "codes": Codes([3], 1),
        "dense": [7],
        "spectral_norm": True,
        "batch_norm": False,
    },
    "infogan with learned variance": {"codes": Codes([4], 1, variance=None)},
    "infogan of one kind": {"codes": Codes([4])},
}


def make_batch(n: int = 6, shape: tuple[int, ...] = (1, 16, 16), classes: int = 0, seed: int = 0) -> Batch:
    source = torch.Generator().manual_seed(seed)
    x = torch.rand(n, *shape, generator=source)
    labels = torch.randint(0, classes, (n,), generator=source) if classes else None
    return Batch(x, labels, classes, torch.zeros(n), torch.arange(n))


def parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def everything(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers."""
    return {name: v.clone() for name, v in module.state_dict().items()}


class Scripted(nn.Module):
    """One parameter that grows by itself; `looks` are what it says at each record."""

    def __init__(self, looks: list[list[str]] | None = None) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))
        self.phases = {"toy": Phase({"network": [self.w]})}
        self.looks = iter(looks or [])

    def loss(self, phase: str, step: int, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return -self.w.expand(len(batch.x)), {}

    def after_step(self, step: int) -> None: ...

    def diagnostics(self) -> Diagnostics:
        return Diagnostics(warnings=next(self.looks, []))


def make_split(n: int = 22, shape: tuple[int, ...] = (1, 16, 16), classes: int = 0) -> Split:
    source = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=source)
    labels = torch.randint(0, classes, (n,), generator=source) if classes else None
    return Split("train", images, labels, classes, Transform(), False)


def fit(
    folder: Path,
    objective: Any,
    *,
    split: Split | None = None,
    validate: Callable[[], dict[str, float]] | None = None,
    selection: str | None = None,
    resume: bool = False,
    stop: ShutdownSignal | None = None,
    **settings: Any,
) -> SimpleNamespace:
    """Train: 22 images in batches of 8 are epochs of three steps. `resume`: from the folder's own checkpoint."""
    options = {"seed": 3, "epochs": 4, "batch_size": 8, "learning_rate": 0.01, "log_every": 2} | settings
    split = split or make_split()
    warnings: list[str] = []
    folder.mkdir(exist_ok=True)
    store = CheckpointManager(folder / "checkpoints", "f", print)
    state = store.load_last("cpu") if resume else None
    log = RunLogger(
        folder,
        position=state["log"] if state else None,
        start_step=state["progress"]["step"] if state else 0,
        total_steps=0,
        images_per_step=1,
        show=False,
    )
    log._events = Mock()  # TensorBoard's is slow to open; metrics.jsonl is what is read
    hooks = Hooks(validate=validate, selection=selection, warn=warnings.append)
    how = TrainSettings(**options)
    trainer = Trainer(
        objective,
        split,
        how,
        how.plan(len(split)),
        hooks=hooks,
        logger=log,
        checkpoints=store,
        stop=stop,
        checkpoint=state,
    )
    try:
        progress = trainer.train()
    finally:
        log.close()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return SimpleNamespace(progress=progress, warnings=warnings, records=[json.loads(line) for line in lines])


def make_objective(model: AdversarialModel, **options: Any) -> Adversarial:
    return Adversarial(model, NonSaturating(), **options)
