"""One training step: the phases in turn, each with its loss averaged over the batch.

`Step.run` is the only place that averages a loss; the mean itself is `BatchShard.mean` (distributed/collectives.py).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from vaerun.data.dataset import Split
from vaerun.distributed.collectives import Ranks
from vaerun.objectives import Objective, Phase
from vaerun.randomness import derive_seed, use_generator
from vaerun.training.finite_guard import FiniteGuard
from vaerun.training.precision import autocast, compare_with_float32, matmul_precision
from vaerun.training.settings import TrainSettings

global_state_lock = threading.Lock()
"""Held while a thread uses process-wide state: captures a graph, draws from torch's global generator, or changes the
precision of matrix products."""


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Run this thread's GPU work on a side stream, since the default stream cannot be captured."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.default_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.default_stream(device).wait_stream(stream)


def make_optimisers(phases: dict[str, Phase], settings: TrainSettings) -> dict[str, Optimizer]:
    """Create one Adam per phase; each parameter group has its own base learning rate and betas.

    On a GPU, learning rates and step counts are tensors, so that a captured step can follow a schedule.
    """
    learning_rates = {
        "variance": settings.variance_learning_rate,
        "discriminator": settings.discriminator_learning_rate,
    }
    betas = {"discriminator": settings.discriminator_betas}

    def options(group: str) -> dict[str, Any]:
        rate = learning_rates.get(group)
        rate = settings.learning_rate if rate is None else rate
        return {"lr": rate, "base_lr": rate, "betas": betas.get(group) or settings.betas}

    optimisers: dict[str, Optimizer] = {}
    for name, phase in phases.items():
        groups = [{"params": p, **options(g)} for g, p in phase.groups.items() if p]
        on_gpu = all(p.is_cuda for group in groups for p in group["params"])
        optimisers[name] = torch.optim.Adam(groups, fused=True, capturable=on_gpu)
        if on_gpu:
            for group in optimisers[name].param_groups:
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=group["params"][0].device)
    return optimisers


def set_learning_rates(optimiser: Optimizer, multiplier: float) -> None:
    """Set each group's learning rate to its base rate times the multiplier."""
    for group in optimiser.param_groups:
        rate = group["base_lr"] * multiplier
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)  # in place, since a captured step holds the address
        else:
            group["lr"] = rate


def update(
    optimiser: Optimizer,
    loss: Tensor,
    metrics: dict[str, Tensor],
    *,
    clip_norm: float | None,
    guard: FiniteGuard,
    step: int | Tensor,
    ranks: Ranks | None = None,
) -> Tensor:
    """Take one optimiser step unless loss or gradient is not finite; return the gradient norm before clipping.

    Loss and metrics are those of this rank's shard; gradient and decision are those of the whole batch.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if ranks is not None:
        loss = ranks.all_reduce_gradients(parameters, loss)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    bad = guard.check_update(step, loss, norm, metrics)
    if guard.on_device:
        # The fused kernel leaves parameters and moments unchanged where this is 1, without a transfer to the host.
        optimiser.grad_scale, optimiser.found_inf = None, bad.float()  # type: ignore[attr-defined]
    optimiser.step()
    return norm


class Step:
    """A training step of an objective on a split.

    Arguments:
        objective, split, settings, optimisers, guard, ranks: those of the trainer.
        generator: generator of batch noise; None: torch's global generator, which no other run may use concurrently.

    Attributes:
        sums: sum of each metric over the images since the last `clear`, on the device.
    """

    def __init__(
        self,
        objective: Objective,
        split: Split,
        settings: TrainSettings,
        optimisers: dict[str, Optimizer],
        guard: FiniteGuard,
        ranks: Ranks,
        generator: torch.Generator | None = None,
    ) -> None:
        self.objective, self.split, self.settings, self.optimisers = objective, split, settings, optimisers
        self.guard, self.ranks, self.generator = guard, ranks, generator
        self.device = split.images.device
        self.sums: dict[str, Tensor] = {}
        self._multiplier: float | None = None

    def begin(self, step: int, lr_multiplier: float) -> None:
        """Seed the noise and set the learning rates for step `step`; not part of a captured step."""
        self.seed(step)
        self.set_lr_multiplier(lr_multiplier)

    def seed(self, step: int) -> None:
        """Seed the noise for step `step`."""
        # torch.manual_seed is slow without a GPU: it formats a call stack in case CUDA is initialised later.
        default = torch.default_generator if self.device.type == "cpu" else torch
        generator = default if self.generator is None else self.generator
        generator.manual_seed(derive_seed(self.settings.seed, "step", step))

    def set_lr_multiplier(self, multiplier: float) -> None:
        """Set the learning rates of all optimisers if they have changed."""
        if multiplier != self._multiplier:
            for optimiser in self.optimisers.values():
                set_learning_rates(optimiser, multiplier)
            self._multiplier = multiplier

    def run(self, step: int | Tensor, rows: Sequence[Tensor]) -> None:
        """Train on the images of these rows, one tensor [B] per repeat of a phase.

        `step` is the number of steps done: an int, or in a captured step a tensor [] on the device.
        """
        precision = self.settings.precision
        with self.ranks.shard(len(rows[0])) as shard, use_generator(self.generator), matmul_precision(precision):
            batches = [self.split.training_batch(row[shard.rows]) for row in rows]
            for name, phase in self.objective.phases.items():
                for batch in batches[: phase.repeats]:
                    with autocast(precision, self.device):
                        loss, metrics = self.objective.loss(name, step, batch)
                    totals = {key: shard.sum(value) for key, value in metrics.items()}
                    norm = update(
                        self.optimisers[name],
                        shard.mean(loss),
                        totals,
                        clip_norm=self.settings.clip_norm,
                        guard=self.guard,
                        step=step,
                        ranks=self.ranks,
                    )
                    totals[f"gradient_norm/{name}"] = norm * shard.valid  # norm over the whole phase, before clipping
                    self._accumulate(totals, phase.repeats)
        if self.ranks.size > 1:
            self.objective.sync_flags(self.ranks.all_true)
        self.objective.after_step(step)

    def _accumulate(self, totals: Mapping[str, Tensor], repeats: int) -> None:
        """Add the mean over a phase's repeats to the running sums, in place."""
        values = [value if repeats == 1 else value / repeats for value in totals.values()]
        for key, value in zip(totals, values, strict=True):
            if key not in self.sums:
                self.sums[key] = torch.zeros_like(value)
        torch._foreach_add_([self.sums[key] for key in totals], values)

    def reduce_metrics(self) -> dict[str, float]:
        """Sum the metrics over all ranks, in one transfer to the host. Raises RunError if a step was bad."""
        sums = self.ranks.sum(self.sums)
        bad_step = self.guard.first_bad_step  # on the device: transferred together with the sums
        scalars = [*sums.values()] if bad_step is None else [*sums.values(), bad_step]
        dtype = torch.float32 if self.device.type == "mps" else torch.float64  # Apple's GPUs lack float64
        values = torch.stack([value.to(dtype) for value in scalars]).tolist() if scalars else []
        self.guard.check(None if bad_step is None else int(values.pop()))
        return dict(zip(sums, values, strict=True))

    def clear(self) -> None:
        """Set all sums to zero."""
        for value in self.sums.values():
            value.zero_()

    def compare_precision(self) -> dict[str, dict[str, float]]:
        """Relative differences from float32 on the first batch, by phase; see precision.compare_with_float32."""
        images = min(self.settings.batch_size, len(self.split))
        rows, differences = torch.arange(images, device=self.device), {}
        training = bool(getattr(self.objective, "training", True))
        self.objective.train(False)  # do not update running statistics
        for name, phase in self.objective.phases.items():

            def loss(name: str = name) -> Tensor:
                self.seed(0)
                with use_generator(self.generator):
                    return self.objective.loss(name, 0, self.split.training_batch(rows))[0].mean()

            parameters = [p for group in phase.groups.values() for p in group]
            with global_state_lock:
                differences[name] = compare_with_float32(loss, parameters, self.settings.precision, self.device)
        self.objective.train(training)
        return differences

    def mutable_tensors(self) -> dict[tuple[str | int, ...], Tensor]:
        """All device tensors that a step mutates."""
        tensors: dict[tuple[str | int, ...], Tensor] = {}
        tensors |= {("objective", k): v for k, v in self.objective.state_dict().items() if isinstance(v, Tensor)}
        tensors |= {("sum", k): v for k, v in self.sums.items()}
        tensors |= {("guard", i): v for i, v in enumerate(self.guard.mutable_tensors)}
        for name, optimiser in self.optimisers.items():
            parameters = [p for group in optimiser.param_groups for p in group["params"]]
            for i, parameter in enumerate(parameters):
                state = optimiser.state.get(parameter, {})
                tensors |= {("optimiser", name, i, k): v for k, v in state.items() if isinstance(v, Tensor)}
        return tensors
