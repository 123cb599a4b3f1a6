"""The process group of one run, and checks that its loss can be computed on shards of a batch."""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from vaerun.data.dataset import Split
from vaerun.distributed.collectives import PeerLost, Ranks
from vaerun.errors import InputError, Interrupted, RunError
from vaerun.objectives import Objective
from vaerun.randomness import batch_slice

__all__ = ["PeerLost", "Ranks", "check_splittable", "process_group"]

JOIN_TIMEOUT = timedelta(minutes=10)  # until the last process has started
COLLECTIVE_TIMEOUT = timedelta(days=14)  # other ranks wait while rank 0 evaluates; lost peers are detected without it
PEER_LOST_DELAY = 1.0  # seconds by which survivors outlive a lost peer: the launcher blames the first to exit


@contextmanager
def process_group(device_type: str) -> Iterator[Ranks]:
    """Join the process group described by torchrun's environment variables (RANK, WORLD_SIZE, ...), if they are set.

    On "cuda", rank i uses GPU i, with NCCL for gradients and gloo for CPU tensors; on "cpu", everything uses gloo.
    Ranks that raise a collective error exit together; a rank with its own error exits at once, and its peers raise
    PeerLost.

    Raises InputError if there are fewer GPUs than processes, and for other devices.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    # Imported anyway by the first optimiser. If a group exists at that time, its threads stay alive at exit, and one
    # that frees a tensor then aborts the process (github.com/pytorch/pytorch/issues/190489).
    import torch._dynamo
    from torch.distributed.rendezvous import rendezvous  # not available in every build of torch

    if device_type not in ("cpu", "cuda"):
        raise InputError(f"trainer.processes={size} needs trainer.device=cpu or cuda, not {device_type}")
    device, backend = torch.device("cpu"), "gloo"
    if device_type == "cuda":
        if torch.cuda.device_count() < size:
            raise InputError(
                f"trainer.processes={size} needs one GPU per process, and this machine has "
                f"{torch.cuda.device_count()} GPUs: lower trainer.processes or set trainer.device=cpu"
            )
        device, backend = torch.device("cuda", int(os.environ["LOCAL_RANK"])), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    store, rank, size = next(rendezvous("env://", timeout=JOIN_TIMEOUT))
    group_store, failures = dist.PrefixStore("vaerun/group", store), dist.PrefixStore("vaerun/failures", store)
    dist.init_process_group(backend, store=group_store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)
    ranks = Ranks(rank, size, device, failures)
    try:
        yield ranks
    except BaseException as error:
        if isinstance(error, InputError | RunError | Interrupted):  # only one rank prints the line
            error.reported = isinstance(error, PeerLost) or (ranks.rank > 0 and ranks.is_collective(error))
        if ranks.is_collective(error):
            with contextlib.suppress(PeerLost):
                ranks.barrier()  # the launcher ends all ranks once one exits: wait until all have written their files
        elif isinstance(error, PeerLost):
            time.sleep(PEER_LOST_DELAY)
        else:
            with contextlib.suppress(RuntimeError):
                failures.set("failed", f"process {rank}: {type(error).__name__}: {' '.join(str(error).split())}")
        if device.type == "cpu" or ranks.is_collective(error):  # NCCL would wait for the missing ranks
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


class _RandomOps(TorchDispatchMode):
    """Collects the names of all operations that draw random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.names.append(str(func).removeprefix("aten.").partition(".")[0])
        return func(*args, **(kwargs or {}))


def check_splittable(objective: Objective, split: Split, processes: int) -> None:
    """Raise InputError if data-parallel training would differ from training in a single process.

    The loss of an image must not depend on the rest of the batch (no batch normalisation or batch means), and random
    numbers must come from batch_normal and batch_uniform. Known violations are declared by their modules; others are
    detected on a few images.

    Arguments:
        objective: objective on the device it will be trained on; not changed.
        split: the training split.
        processes: trainer.processes; 1 accepts everything.
    """
    if processes == 1:
        return
    setting, remedy = f"trainer.processes={processes}", "set trainer.processes=1"
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in cast(nn.Module, objective).modules()):
        raise InputError(
            f"{setting}: batch normalisation needs the whole batch, and each process sees only a part: {remedy}, or "
            "switch it off (batch_norm=false in model.generator and model.discriminator)"
        )
    if objective.batch_coupling is not None:
        raise InputError(
            f"{setting}: {objective.batch_coupling} needs the whole batch, and each process sees only a part: "
            f"{remedy}, or choose another value"
        )
    images = min(4, len(split))
    half = max(1, images // 2)
    with torch.random.fork_rng([split.images.device] if split.images.device.type == "cuda" else []):
        full, part = (_trial_losses(objective, split, stop, images, setting, remedy) for stop in (images, half))
    for in_full, in_part in zip(full, part, strict=True):
        if not torch.allclose(in_full[:half], in_part, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise InputError(
                f"{setting}: the loss of an image depends on the other images of its batch, so the batch cannot be "
                f"split: {remedy}"
            )


def check_noise(objective: Objective, split: Split, setting: str, remedy: str) -> None:
    """Raise InputError if a run that shares its process would draw other random numbers than a stand-alone run.

    Arguments:
        objective, split: see check_splittable.
        setting: setting that requests sharing, for the error line.
        remedy: advice, for the error line.
    """
    images = min(2, len(split))
    with torch.random.fork_rng([split.images.device] if split.images.device.type == "cuda" else []):
        _trial_losses(objective, split, images, images, setting, remedy)


def _trial_losses(
    objective: Objective, split: Split, stop: int, images: int, setting: str, remedy: str
) -> list[Tensor]:
    """Losses [stop] of each phase on the first `stop` of `images` images.

    Raises InputError if random numbers are not drawn by batch_normal or batch_uniform.
    """
    objective = copy.deepcopy(objective)
    objective.train()
    losses = []
    torch.manual_seed(0)
    with batch_slice(0, stop, images) as part, _RandomOps() as operations:
        batch = split.training_batch(torch.arange(stop, device=split.images.device))
        for phase in objective.phases:
            losses.append(objective.loss(phase, 0, batch)[0].detach())
    if len(operations.names) != part.draws:
        raise InputError(
            f"{setting}: the model or the estimator draws random numbers of its own "
            f"({', '.join(sorted(set(operations.names)))}), which would differ from a stand-alone run's: {remedy}, or "
            "draw them with vaerun.randomness.batch_normal or batch_uniform"
        )
    return losses
