"""The trainer's steps on a GPU: eager, captured as CUDA graphs, in several precisions, and of several concurrent runs.

One call is several steps, because a graph is launched asynchronously. Images are synthetic, of CIFAR-10's size.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vaerun.bench import vlae
from vaerun.bench.case import BenchSettings, Call, Case, Work
from vaerun.bench.vae import step_work
from vaerun.data.dataset import Split
from vaerun.data.transforms import Transform
from vaerun.distributed.collectives import Ranks
from vaerun.estimators import elbo
from vaerun.inference import Amortised, Householder, Laplace, SemiAmortised
from vaerun.models import Gaussian, LatentModel
from vaerun.nets import MLPDecoder, MLPEncoder
from vaerun.objectives import Variational
from vaerun.training import TrainSettings, make_optimisers
from vaerun.training.cuda_graph import CudaGraph, GraphedStep
from vaerun.training.finite_guard import FiniteGuard
from vaerun.training.step import Step, side_stream

STEPS = 10  # training steps per call
BATCH = 128
NETWORKS = {"small": ([512], 32), "big": ([500, 500], 50)}  # hidden widths and d, as in vlae_cifar10_small and _big
QUICK = {"quick": ([12, 10], 3)}
MODELS = [("VAE", 0), ("VAE+HF", 4), ("SA-VAE", 4), ("VLAE", 1), ("VLAE", 2), ("VLAE", 4), ("VLAE", 8)]
CONCURRENT_RUNS = (1, 4, 13)


@dataclass(frozen=True)
class ModelSize:
    """A model: name, T, hidden widths, d and image shape."""

    name: str
    steps: int
    hidden: tuple[int, ...]
    latent: int
    shape: tuple[int, int, int]

    def __str__(self) -> str:
        widths = "x".join(map(str, self.hidden))
        t = f" T={self.steps}" if self.steps else ""
        return f"{self.name}{t}, hidden {widths}, d={self.latent}, B={BATCH}"


def make_step(size: ModelSize, device: torch.device, precision: str = "float32", with_generator: bool = False) -> Step:
    """The training step of a new model on 20 batches of images."""
    torch.manual_seed(0)
    shape, hidden, d = size.shape, list(size.hidden), size.latent
    images = torch.randint(0, 256, (20 * BATCH, *shape), dtype=torch.uint8)
    split = Split("train", images.to(device), None, 0, Transform(), False)
    encoder = MLPEncoder(shape, hidden=hidden)
    inference = {
        "VAE": lambda: Amortised(encoder, d),
        "VAE+HF": lambda: Householder(encoder, d, steps=size.steps),
        "SA-VAE": lambda: SemiAmortised(encoder, d, steps=size.steps, step_size=0.03),
        "VLAE": lambda: Laplace(encoder, d, steps=size.steps),
    }[size.name]()
    decoder, mean = MLPDecoder(d, shape, hidden=hidden), torch.full(shape, 0.5)
    model = LatentModel(decoder, Gaussian(0.06), inference, latent_dim=d, mean=mean).to(device)
    objective = Variational(model, elbo, 1)
    settings = TrainSettings(0, 1, BATCH, 5e-4, precision=precision)
    optimisers = make_optimisers(objective.phases, settings)
    generator = torch.Generator(device) if with_generator else None
    return Step(objective, split, settings, optimisers, FiniteGuard(device), Ranks(), generator)


def capture(step: Step) -> GraphedStep:
    """The step captured as a CUDA graph for a full batch."""
    pool = torch.cuda.graph_pool_handle()
    return GraphedStep(step, [BATCH], 1, 0, lambda: CudaGraph(step.generator, pool))


def make_call(size: ModelSize, device: torch.device, precision: str, captured: bool) -> Call:
    """STEPS training steps; on a GPU in a side stream."""
    with side_stream(device):
        step = make_step(size, device, precision)
        stepper = capture(step) if captured else step
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


def steps_work(size: ModelSize) -> Work | None:
    """Minimal work of STEPS steps; None if it has not been counted for this model."""
    if size.name == "VLAE":
        per_step = vlae.step_work(vlae.Size(size.hidden, size.latent, size.shape, BATCH, size.steps))
    elif size.name == "VAE":
        pixels = size.shape[0] * size.shape[1] * size.shape[2]
        per_step = step_work(pixels, list(size.hidden), size.latent, BATCH)
    else:
        return None
    return Work(
        flops=STEPS * per_step.flops, bytes=STEPS * per_step.bytes, factorisations=STEPS * per_step.factorisations,
        solves=STEPS * per_step.solves, batch=per_step.batch, dim=per_step.dim,
    )  # fmt: skip


def sizes(setting: BenchSettings) -> Iterator[tuple[str, ModelSize]]:
    """(name of the network, model) of each case."""
    for name, (hidden, latent) in (QUICK if setting.quick else NETWORKS).items():
        for model, steps in MODELS[:2] if setting.quick else MODELS:
            yield name, ModelSize(model, steps, tuple(hidden), latent, (1, 4, 4) if setting.quick else (3, 32, 32))


def steps(setting: BenchSettings) -> Iterator[Case]:
    """Steps of the trainer: captured as CUDA graphs, eager, and captured in TF32 and bfloat16 (GPU)."""
    gpu = setting.device.type == "cuda"
    variants = [("captured", "float32", gpu), ("eager", "float32", False)]
    variants += [("captured, tf32", "tf32", True), ("captured, bf16", "bf16", True)] if gpu else []
    for name, size in sizes(setting):
        yield Case(
            f"{name}: {size}",
            f"{STEPS} steps",
            {
                variant: lambda precision=precision, captured=captured, size=size: make_call(  # type: ignore[misc]
                    size, setting.device, precision, captured
                )
                for variant, precision, captured in (variants if gpu else variants[1:])
            },
            steps_work(size),
            items=STEPS * BATCH,
            notes=["the floor assumes float32 products"],
            memory=False,
        )


def together(setting: BenchSettings) -> Iterator[Case]:
    """Several runs in one process, each in a thread with its own CUDA stream (GPU)."""
    if setting.device.type != "cuda":
        return
    name, (hidden, latent) = next(iter((QUICK if setting.quick else NETWORKS).items()))
    shape = (1, 4, 4) if setting.quick else (3, 32, 32)
    for model, t in [("VAE", 0), ("VLAE", 4)] if setting.quick else [("VAE", 0), ("SA-VAE", 4), ("VLAE", 4)]:
        size = ModelSize(model, t, tuple(hidden), latent, shape)
        counts = CONCURRENT_RUNS[:2] if setting.quick else CONCURRENT_RUNS
        yield Case(
            f"{name}: {size}, concurrent runs",
            f"{5 * STEPS} steps of each run",
            {
                f"{n} concurrent": lambda n=n, size=size: concurrent_runs(size, n, setting.device)  # type: ignore[misc]
                for n in counts
            },
            notes=["throughput relative to one run: number of runs / ratio of times"],
            memory=False,
        )


def concurrent_runs(size: ModelSize, runs: int, device: torch.device) -> Call:
    """5 * STEPS captured steps of each of several runs, concurrently."""
    runs_and_streams = []
    for _ in range(runs):
        with side_stream(device):
            runs_and_streams.append(
                (capture(make_step(size, device, with_generator=True)), torch.cuda.current_stream(device))
            )
    rows = torch.arange(BATCH, device=device)
    number = 0

    def train(graphed: GraphedStep, stream: torch.cuda.Stream, start: int) -> None:
        with torch.cuda.stream(stream):
            for i in range(5 * STEPS):
                graphed.step.begin(start + i, 1.0)
                graphed.run(start + i, [rows])
            stream.synchronize()

    def steps() -> None:
        nonlocal number
        threads = [threading.Thread(target=train, args=(*run, number)) for run in runs_and_streams]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        number += 5 * STEPS

    return steps
