"""Training steps on a GPU as the trainer makes them: made each time, recorded, in other precisions, of several runs.

One call is some steps: a recording is started and not waited for. Images are synthetic, of CIFAR-10's size.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vaerun.bench import laplace
from vaerun.bench.case import Call, Case, Setting, Work
from vaerun.bench.plain import step_work
from vaerun.data.dataset import Split
from vaerun.data.transforms import Transform
from vaerun.distributed.collectives import Ranks
from vaerun.estimators import elbo
from vaerun.inference import Amortised, Householder, Laplace, SemiAmortised
from vaerun.models import Gaussian, LatentModel
from vaerun.nets import MLPDecoder, MLPEncoder
from vaerun.objectives import Variational
from vaerun.training import TrainSettings, make_optimisers
from vaerun.training.cuda_graph import CudaCapture, GraphedStep
from vaerun.training.finite_guard import FiniteGuard
from vaerun.training.step import Step, side_stream

STEPS = 10  # in one call
BATCH = 128
NETWORKS = {"small": ([512], 32), "big": ([500, 500], 50)}  # hidden widths and d: experiments vlae_cifar10_small, _big
QUICK = {"quick": ([12, 10], 3)}
MODELS = [("VAE", 0), ("VAE+HF", 4), ("SA-VAE", 4), ("VLAE", 1), ("VLAE", 2), ("VLAE", 4), ("VLAE", 8)]
TOGETHER = (1, 4, 13)


@dataclass(frozen=True)
class Trained:
    """A model by its name, T, hidden widths, d and image shape."""

    kind: str
    steps: int
    hidden: tuple[int, ...]
    latent: int
    shape: tuple[int, int, int]

    def __str__(self) -> str:
        widths = "x".join(map(str, self.hidden))
        t = f" T={self.steps}" if self.steps else ""
        return f"{self.kind}{t}, hidden {widths}, d={self.latent}, B={BATCH}"


def step_of(trained: Trained, device: torch.device, precision: str = "float32", source: bool = False) -> Step:
    """A training step of a new model on 20 batches of images."""
    torch.manual_seed(0)
    shape, hidden, d = trained.shape, list(trained.hidden), trained.latent
    images = torch.randint(0, 256, (20 * BATCH, *shape), dtype=torch.uint8)
    split = Split("train", images.to(device), None, 0, Transform(), False)
    encoder = MLPEncoder(shape, hidden=hidden)
    inference = {
        "VAE": lambda: Amortised(encoder, d),
        "VAE+HF": lambda: Householder(encoder, d, steps=trained.steps),
        "SA-VAE": lambda: SemiAmortised(encoder, d, steps=trained.steps, step_size=0.03),
        "VLAE": lambda: Laplace(encoder, d, steps=trained.steps),
    }[trained.kind]()
    decoder, mean = MLPDecoder(d, shape, hidden=hidden), torch.full(shape, 0.5)
    model = LatentModel(decoder, Gaussian(0.06), inference, latent_dim=d, mean=mean).to(device)
    objective = Variational(model, elbo, 1)
    settings = TrainSettings(0, 1, BATCH, 5e-4, precision=precision)
    optimisers = make_optimisers(objective.phases, settings)
    generator = torch.Generator(device) if source else None
    return Step(objective, split, settings, optimisers, FiniteGuard(device), Ranks(), generator)


def recorded(step: Step) -> GraphedStep:
    """The step recorded for a whole batch."""
    pool = torch.cuda.graph_pool_handle()
    return GraphedStep(step, [BATCH], 1, 0, lambda: CudaCapture(step.generator, pool))


def call(trained: Trained, device: torch.device, precision: str, record: bool) -> Call:
    """Some steps of a training; on a GPU in a stream of its own."""
    with side_stream(device):
        step = step_of(trained, device, precision)
        stepper = recorded(step) if record else step
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    rows = torch.arange(BATCH, device=device)
    number = 0

    def steps() -> None:
        nonlocal number
        with torch.cuda.stream(stream):
            for _ in range(STEPS):
                step.begin(number, 1.0)
                stepper.run(number, [rows])
                number += 1

    return steps


def work(trained: Trained) -> Work | None:
    """Of some steps; None where nothing has been counted for this model."""
    if trained.kind == "VLAE":
        once = laplace.work(laplace.Size(trained.hidden, trained.latent, trained.shape, BATCH, trained.steps))
    elif trained.kind == "VAE":
        pixels = trained.shape[0] * trained.shape[1] * trained.shape[2]
        once = step_work(pixels, list(trained.hidden), trained.latent, BATCH)
    else:
        return None
    return Work(
        products=STEPS * once.products, bytes=STEPS * once.bytes, factors=STEPS * once.factors,
        solves=STEPS * once.solves, matrices=once.matrices, size=once.size,
    )  # fmt: skip


def sizes(setting: Setting) -> Iterator[tuple[str, Trained]]:
    """All of them, with the name of the network."""
    for name, (hidden, latent) in (QUICK if setting.quick else NETWORKS).items():
        for kind, steps in MODELS[:2] if setting.quick else MODELS:
            yield name, Trained(kind, steps, tuple(hidden), latent, (1, 4, 4) if setting.quick else (3, 32, 32))


def steps(setting: Setting) -> Iterator[Case]:
    """Steps of the trainer: recorded as CUDA graphs, made each time, and recorded in TF32 and bfloat16 (GPU)."""
    gpu = setting.device.type == "cuda"
    forms = [("recorded", "float32", gpu), ("made each time", "float32", False)]
    forms += [("recorded, tf32", "tf32", True), ("recorded, bf16", "bf16", True)] if gpu else []
    for name, trained in sizes(setting):
        yield Case(
            f"{name}: {trained}",
            f"{STEPS} steps",
            {
                form: lambda precision=precision, record=record, trained=trained: call(  # type: ignore[misc]
                    trained, setting.device, precision, record
                )
                for form, precision, record in (forms if gpu else forms[1:])
            },
            work(trained),
            items=STEPS * BATCH,
            notes=["the floor is that of float32 products"],
            memory=False,
        )


def together(setting: Setting) -> Iterator[Case]:
    """Several runs in one process, each a thread with a CUDA stream of its own (GPU)."""
    if setting.device.type != "cuda":
        return
    name, (hidden, latent) = next(iter((QUICK if setting.quick else NETWORKS).items()))
    shape = (1, 4, 4) if setting.quick else (3, 32, 32)
    for kind, t in [("VAE", 0), ("VLAE", 4)] if setting.quick else [("VAE", 0), ("SA-VAE", 4), ("VLAE", 4)]:
        trained = Trained(kind, t, tuple(hidden), latent, shape)
        counts = TOGETHER[:2] if setting.quick else TOGETHER
        yield Case(
            f"{name}: {trained}, so many runs at once",
            f"{5 * STEPS} steps of each",
            {f"{n} at once": lambda n=n, trained=trained: crowd(trained, n, setting.device) for n in counts},  # type: ignore[misc]
            notes=["throughput against one run: runs divided by the ratio of times"],
            memory=False,
        )


def crowd(trained: Trained, runs: int, device: torch.device) -> Call:
    """So many recorded trainings, some steps of each at once."""
    made = []
    for _ in range(runs):
        with side_stream(device):
            made.append((recorded(step_of(trained, device, source=True)), torch.cuda.current_stream(device)))
    rows = torch.arange(BATCH, device=device)
    number = 0

    def some(graphed: GraphedStep, stream: torch.cuda.Stream, start: int) -> None:
        with torch.cuda.stream(stream):
            for i in range(5 * STEPS):
                graphed.step.begin(start + i, 1.0)
                graphed.run(start + i, [rows])
            stream.synchronize()

    def steps() -> None:
        nonlocal number
        threads = [threading.Thread(target=some, args=(*one, number)) for one in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        number += 5 * STEPS

    return steps
