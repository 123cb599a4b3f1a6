"""Runs over several ranks: `torch.distributed.run ... -m support.runs.processes JOBFILE` trains cases in turn.

A launch takes seconds, so one serves many cases. Each rank saves the outcomes under FOLDER/RANK.pt; the same function
trains the single process that they are compared with.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from support.models import adversarial, members
from support.models.precision import set_precision
from support.runs.commands import importing_support
from torch import Tensor

from vaerun.data.dataset import Batch, Split
from vaerun.distributed.process_group import PeerLost, Ranks, process_group
from vaerun.errors import Interrupted, RunError
from vaerun.evaluation import Validator
from vaerun.objectives import Adversarial, KLWarmup, Variational
from vaerun.randomness import permutation
from vaerun.signals import ShutdownSignal
from vaerun.storage.checkpoint import CheckpointManager
from vaerun.tracking.logger import RunLogger
from vaerun.tracking.monitor import Monitor
from vaerun.training import Hooks, Trainer, TrainSettings

IMAGES = 25  # batches of 8: the last one of an epoch has one image
STEPS = 4  # an epoch


@dataclass
class Case:
    """What to train, and what happens meanwhile (steps count from 1)."""

    make: Callable[[Split], Any]  # the objective
    classes: int = 0
    transform: str = "plain"
    shape: tuple[int, ...] = (1, 3, 4)
    settings: dict[str, Any] = field(default_factory=dict)
    scores: list[float] | None = None  # results of the validations, in place of real ones
    events: dict[str, Any] = field(default_factory=dict)


def likelihood(
    posterior: str = "amortised",
    estimator: str = "elbo",
    samples: int = 1,
    *,
    pixels: str = "gaussian",
    network: str = "mlp",
    context: str = "plain",
    warm_up: KLWarmup | None = None,
) -> Callable[[Split], Variational]:
    def make(split: Split) -> Variational:
        model = members.make_model(posterior, pixels, network, context)
        return Variational(model, members.ESTIMATORS[estimator].make(), samples, warm_up)

    return make


def gan(member: str, **options: Any) -> Callable[[Split], Adversarial]:
    def make(split: Split) -> Adversarial:
        torch.manual_seed(0)
        return Adversarial(
            adversarial.make_model(**adversarial.MEMBERS[member]), adversarial.NonSaturating(), **options
        )

    return make


def _label(posterior: str, estimator: str, samples: int = 1, context: str = "label_prior") -> Case:
    return Case(likelihood(posterior, estimator, samples, context=context), classes=3)


BASE = Case(likelihood())
BINARY = partial(likelihood, pixels="bernoulli")

MODELS = {
    "vae": BASE,
    "vae clipped": Case(likelihood(), settings={"clip_norm": 0.5, "schedule": "cosine", "log_every": 5}),
    "vae of binary pixels": Case(BINARY("amortised", "elbo_mc", 3), transform="dynamic"),
    "vae of dequantised pixels": Case(likelihood("full", "stl"), transform="logit"),
    "vae with warm-up": Case(likelihood("amortised", "elbo", 2, warm_up=KLWarmup(1.0, 6))),
    "convolutional vae": Case(likelihood(network="conv"), shape=(1, 8, 8)),
    "iwae": Case(likelihood("amortised", "iwae", 5)),
    "dreg": Case(likelihood("amortised", "dreg", 3)),
    "vlae": Case(likelihood("laplace2", "elbo_mc", network="relu")),
    "vlae of binary pixels": Case(BINARY("laplace2", "iwae", 3), transform="dynamic"),
    "conditional vlae": _label("laplace2", "elbo"),
    "sa_vae": Case(likelihood("semi2", "elbo"), settings={"clip_norm": 1.0}),
    "vae_hf": Case(likelihood("householder3", "elbo")),
    "vae_iaf": Case(likelihood("iaf2", "elbo_mc", 2)),
    "cvae": _label("amortised", "elbo"),
    "score function": Case(likelihood("amortised", "score_leave_one_out", 3)),
    "wake-sleep": Case(likelihood("laplace0", "wake_sleep", 3)),
    "gan": Case(gan("mlp", discriminator_steps=2, r1=0.5), shape=(1, 16, 16)),
    "conditional gan": Case(
        gan("mlp spectral conditional", winning_steps=4), classes=3, shape=(1, 16, 16), events={"won": 7}
    ),
    "infogan": Case(gan("infogan with learned variance"), shape=(1, 16, 16)),
}

ENDINGS = {
    "cut": Case(likelihood(), settings=MODELS["vae clipped"].settings, events={"signal": (3, "loss", 1)}),
    "not finite": Case(likelihood(), events={"inf": (6, "kl")}),
    "not finite for the first": Case(likelihood(), events={"inf": (8, "reconstruction")}),  # a batch of one image
    "signal to one": Case(likelihood(), events={"signal": (5, "loss", 1)}),
    "signal to one, late": Case(likelihood(), events={"signal": (5, "after_step", 1)}),
    "signal to the first": Case(likelihood(), events={"signal": (5, "loss", 0)}),
    "signal in validation": Case(likelihood(), events={"signal": (2, "validate", 0)}),
    "early stopping": Case(likelihood(), scores=[1.0, 3.0, 2.0, 3.0, 9.0], settings={"epochs": 5, "early_stopping": 2}),
    "validation not finite": Case(likelihood(), scores=[1.0, float("nan")]),
    "checkpoint at every step": Case(likelihood(), settings={"checkpoint_seconds": 0.0}),
    "other parameters": Case(likelihood(), events={"perturb": 1}),
    "parameters drift apart": Case(likelihood(), events={"drift": (2, 1)}),
    "other settings": Case(likelihood(), events={"reseed": 1}),
}

DEATHS = {
    "raises": Case(likelihood(), events={"raise": (6, 1)}),
    "killed": Case(likelihood(), events={"kill": (6, 1)}),
    "first raises": Case(likelihood(), scores=[1.0]),  # the second validation has no score left
}

CASES = MODELS | ENDINGS | DEATHS


def split_of(case: Case) -> Split:
    source = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (IMAGES, *case.shape), dtype=torch.uint8, generator=source)
    labels = torch.arange(IMAGES) % case.classes if case.classes else None
    return Split("train", pixels, labels, case.classes, members.TRANSFORMS[case.transform], False)


def _schedule_events(case: Case, objective: Any, ranks: Ranks) -> None:
    """Make the case's events happen."""
    events = case.events

    def at(step: int, place: str) -> None:
        when, where, rank = events.get("signal", (None, None, None))
        if (when, where, min(rank or 0, ranks.size - 1)) == (step, place, ranks.rank):
            signal.raise_signal(signal.SIGTERM)

    last = last_rows(IMAGES, 3)
    original = objective.loss, objective.after_step

    def loss(phase: str, step: int, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        at(step + 1, "loss")
        if events.get("raise") == (step + 1, ranks.rank):
            raise ValueError("what a bug looks like")
        if events.get("kill") == (step + 1, ranks.rank):
            os.kill(os.getpid(), signal.SIGKILL)
        value, metrics = original[0](phase, step, batch)
        if phase == "discriminator" and "won" in events:  # on all ranks from that step on, on all but the last before
            objective._flawless = torch.tensor(step + 1 >= events["won"] or ranks.rank < ranks.size - 1)
        when, term = events.get("inf", (None, ""))
        if when == step + 1:
            value = torch.where(batch.rows == last[step], torch.inf, value)
            metrics = metrics | {term: torch.where(batch.rows == last[step], torch.inf, metrics[term])}
        return value, metrics

    def after_step(step: int) -> None:
        original[1](step)
        if events.get("drift") == (step + 1, ranks.rank):
            perturb(objective)
        at(step + 1, "after_step")

    objective.loss, objective.after_step = loss, after_step
    objective.at = at


def perturb(objective: Any) -> None:
    with torch.no_grad():
        next(objective.parameters()).view(-1)[0] += 1e-12


def last_rows(images: int, seed: int) -> dict[int, int]:
    """By step: the image at the end of its batch of 8, which the last rank computes."""
    orders = [permutation(images, seed, "epoch", epoch) for epoch in range(3)]
    steps = [(epoch, i) for epoch in range(3) for i in range(STEPS)]
    return {step: int(orders[epoch][min(8 * i + 7, images - 1)]) for step, (epoch, i) in enumerate(steps)}


def run(case: Case, folder: Path, ranks: Ranks | None = None, resume: Path | None = None) -> dict[str, Any]:
    """Train the case and return its outcome on this rank."""
    ranks = Ranks() if ranks is None else ranks
    split = split_of(case)
    objective = case.make(split)
    options = {"seed": 3, "epochs": 3, "batch_size": 8, "learning_rate": 0.01, "log_every": 1} | case.settings
    if case.events.get("reseed") == ranks.rank:
        options["seed"] = 4
    if case.events.get("perturb") == ranks.rank:
        perturb(objective)
    _schedule_events(case, objective, ranks)
    state = None if resume is None else CheckpointManager(resume / "checkpoints", "f", print).load_last("cpu")
    outcome: dict[str, Any] = {"error": None}
    hooks, arguments = Hooks(), dict[str, Any]()
    with ShutdownSignal() as stop, stop.deferred(), contextlib.ExitStack() as stack:
        if ranks.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            if resume is not None:
                (folder / "metrics.jsonl").write_bytes((resume / "metrics.jsonl").read_bytes())
            position = None if state is None else state["log"]
            log = RunLogger(folder, position=position, start_step=0, total_steps=0, images_per_step=1, show=False)
            stack.callback(log.close)
            arguments = {"logger": log, "checkpoints": CheckpointManager(folder / "checkpoints", "f", print)}
            setdefault = outcome.setdefault
            hooks = Hooks(
                validate=_validate(case, objective, split, stop),
                on_validation_end=lambda step: setdefault("seen", []).append(step),
            )
        try:
            settings = TrainSettings(**options)
            arguments |= {"hooks": hooks, "stop": stop, "ranks": ranks, "checkpoint": state}
            progress = Trainer(objective, split, settings, settings.plan(len(split)), **arguments).train()
            outcome |= {"step": progress.step, "best": progress.best}
        except (RunError, Interrupted) as error:
            outcome |= {"error": str(error), "kind": type(error).__name__, "shared": ranks.is_collective(error)}
            if isinstance(error, PeerLost):
                (folder.parent / f"lost{ranks.rank}").write_text(str(error))
                raise
    outcome["state"] = {k: v.detach().clone() for k, v in objective.state_dict().items()}
    if ranks.rank == 0:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        outcome["records"] = [json.loads(line) for line in lines]
    return outcome


def _validate(case: Case, objective: Any, split: Split, stop: ShutdownSignal) -> Callable[[], dict[str, float]] | None:
    if case.scores is not None:
        scores = iter(case.scores)
        return lambda: {"val/elbo": next(scores)}
    if isinstance(objective, Adversarial):
        return None
    options = {"estimator": objective.estimator, "samples": objective.samples, "seed": 1, "batch_size": 10}
    validator, calls = Validator(objective.model, split, monitor=Monitor(stop), **options), []

    def validate() -> dict[str, float]:
        calls.append(1)
        objective.at(len(calls), "validate")
        metrics = validator()
        return metrics | {"val/elbo": metrics[validator.selection]}

    return validate


def launch(
    names: list[str], size: int, folder: Path, resume: dict[str, str] | None = None, dtype: str = "float64"
) -> subprocess.CompletedProcess[str]:
    """Train these cases in turn on `size` ranks; a name may be `CASE@LABEL`, to train a case twice."""
    folder.mkdir(parents=True, exist_ok=True)
    job = folder / "job.json"
    job.write_text(json.dumps({"names": names, "folder": str(folder), "resume": resume or {}, "dtype": dtype}))
    command = [sys.executable, "-W", "error::UserWarning", "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={size}", "-m", "support.runs.processes", str(job)]
    env = importing_support(dict(os.environ)) | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


def outcomes(folder: Path, size: int) -> list[dict[str, Any]]:
    """The outcomes of each rank, by case."""
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


def main(path: str) -> None:
    job = json.loads(Path(path).read_text())
    torch.set_num_threads(1)
    set_precision(getattr(torch, job["dtype"]))
    folder, results = Path(job["folder"]), {}
    with process_group("cpu") as ranks:
        for name in job["names"]:
            resume = job["resume"].get(name)
            case = CASES[name.partition("@")[0]]
            eventless = Case(case.make, case.classes, case.transform, case.shape, case.settings, case.scores)
            case = case if resume is None else eventless  # events happen once
            results[name] = run(case, folder / name, ranks, None if resume is None else Path(resume))
            ranks.barrier()
        torch.save(results, folder / f"{ranks.rank}.pt")
        ranks.barrier()


if __name__ == "__main__":
    main(sys.argv[1])
