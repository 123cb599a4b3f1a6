"""Joining the processes of one run, and what cannot be trained by several: see ranks.py for how they train."""

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

JOIN = timedelta(minutes=10)  # for the last process to start
WAIT = timedelta(days=14)  # the others wait while the first evaluates; one that dies is noticed without a clock
LAST_SECONDS = 1.0  # that those who lose a process stay behind it: the launcher names the first one to end


@contextmanager
def process_group(device_type: str) -> Iterator[Ranks]:
    """Join the processes started with torchrun's environment (RANK, WORLD_SIZE, ...); without it, a run of one.

    On "cuda" process i has GPU i: gradients travel by NCCL, words by gloo. On "cpu" all by gloo. An error that all
    processes raise is left together; one that does not come to all is left at once, and the others are lost to it.

    Raises InputError where there are fewer GPUs than processes, and for any other device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    # Optimisers import it when first made. Imported while there is a group it keeps the group's threads beyond the end,
    # and one that still lets go of a tensor then aborts the process (github.com/pytorch/pytorch/issues/190489).
    import torch._dynamo
    from torch.distributed.rendezvous import rendezvous  # not in every build of torch

    if device_type not in ("cpu", "cuda"):
        raise InputError(f"trainer.processes={size} needs trainer.device=cpu or cuda, not {device_type}")
    device, backend = torch.device("cpu"), "gloo"
    if device_type == "cuda":
        if torch.cuda.device_count() < size:
            raise InputError(
                f"trainer.processes={size}: this machine has {torch.cuda.device_count()} GPUs, and each process needs "
                "its own: lower trainer.processes or set trainer.device=cpu"
            )
        device, backend = torch.device("cuda", int(os.environ["LOCAL_RANK"])), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    store, rank, size = next(rendezvous("env://", timeout=JOIN))
    own, words = dist.PrefixStore("vaerun/group", store), dist.PrefixStore("vaerun/words", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=WAIT)
    ranks = Ranks(rank, size, device, words)
    try:
        yield ranks
    except BaseException as error:
        if isinstance(error, InputError | RunError | Interrupted):  # whose line one process prints
            error.reported = isinstance(error, PeerLost) or (ranks.rank > 0 and ranks.shared(error))
        if ranks.shared(error):
            with contextlib.suppress(PeerLost):
                ranks.barrier()  # nobody is ended by the launcher while another still writes what has happened
        elif isinstance(error, PeerLost):
            time.sleep(LAST_SECONDS)
        else:
            with contextlib.suppress(RuntimeError):
                words.set("failed", f"process {rank}: {type(error).__name__}: {' '.join(str(error).split())}")
        if device.type == "cpu" or ranks.shared(error):  # else NCCL might wait for what never comes
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


class _Draws(TorchDispatchMode):
    """Counts the operations that draw random numbers, whoever asks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.names.append(str(func).removeprefix("aten.").partition(".")[0])
        return func(*args, **(kwargs or {}))


def check_splittable(objective: Objective, split: Split, processes: int) -> None:
    """Raises InputError where several processes would train something else than one.

    What each image contributes must be its own: nothing normalised, averaged or remembered over the batch, no random
    numbers but batch_normal's and batch_uniform's. Known parts say so themselves; the rest is tried on a few images.

    Arguments:
        objective: on the device that it will be trained on; it stays as it is.
        split: the training split.
        processes: trainer.processes; nothing is refused for one.
    """
    if processes == 1:
        return
    where, instead = f"trainer.processes={processes}", "set trainer.processes=1"
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in cast(nn.Module, objective).modules()):
        raise InputError(
            f"{where}: batch normalisation needs the whole batch, of which each process sees a part: {instead}, or "
            "switch it off (batch_norm=false of model.generator and model.discriminator)"
        )
    if objective.batch_coupling is not None:
        raise InputError(
            f"{where}: {objective.batch_coupling} needs the whole batch, of which each process sees a part: {instead}, "
            "or another value"
        )
    images = min(4, len(split))
    half = max(1, images // 2)
    with torch.random.fork_rng([split.images.device] if split.images.device.type == "cuda" else []):
        whole, part = (_trial(objective, split, stop, images, where, instead) for stop in (images, half))
    for one, other in zip(whole, part, strict=True):
        if not torch.allclose(one[:half], other, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise InputError(
                f"{where}: the loss of an image is another when it stands beside other images, so it cannot be trained "
                f"by parts of a batch: {instead}"
            )


def check_noise(objective: Objective, split: Split, where: str, instead: str) -> None:
    """Raises InputError where a run that shares its process with others would draw other random numbers than alone.

    Arguments:
        objective, split: as in check.
        where: the setting that asks for it.
        instead: what else the user can set.
    """
    images = min(2, len(split))
    with torch.random.fork_rng([split.images.device] if split.images.device.type == "cuda" else []):
        _trial(objective, split, images, images, where, instead)


def _trial(objective: Objective, split: Split, stop: int, images: int, where: str, instead: str) -> list[Tensor]:
    """Losses [stop], phase by phase, of the first `stop` of `images` images. Raises InputError for foreign draws."""
    objective = copy.deepcopy(objective)
    objective.train()
    losses = []
    torch.manual_seed(0)
    with batch_slice(0, stop, images) as at_hand, _Draws() as draws:
        batch = split.training_batch(torch.arange(stop, device=split.images.device))
        for phase in objective.phases:
            losses.append(objective.loss(phase, 0, batch)[0].detach())
    if len(draws.names) != at_hand.draws:
        raise InputError(
            f"{where}: a part of the model or of the estimator draws random numbers of its own "
            f"({', '.join(sorted(set(draws.names)))}), which would not be those of a run alone: {instead}, or draw "
            "them by vaerun.randomness.batch_normal or batch_uniform"
        )
    return losses
